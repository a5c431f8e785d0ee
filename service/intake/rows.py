"""Rows of data sets: JSONL or CSV by content, checked one by one, written again as plain JSONL."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import FieldError, Invalid
from service.intake.limits import Limits
from service.intake.sources import PIECE, Source
from service.intake.strict_json import JsonRefused, loads, plain
from service.intake.unpacking import Stored

MAX_LINE = 1 << 20
MAX_FIELD = 256 << 10
MAX_LABELS = 100_000
MAX_LABEL = 256
SPLITS = ("train", "validation", "test", "calibration")
_COLUMNS = ("text", "text_pair", "label")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,4}")


class Fault(Exception):
    """What is wrong with one row: why, and in which column."""

    def __init__(self, why: str, column: str = "", code: str = "ROW_INVALID") -> None:
        super().__init__(why)
        self.why, self.column, self.code = why, column, code

    def at(self, split: str, line: int) -> Invalid:
        """The error that the client sees: names split, line (from 1) and cause, never a value."""
        pointer = f"/{split}/{line}" + (f"/{self.column}" if self.column else "")
        detail = f"Split {split}, line {line}: {self.why}."
        return Invalid(detail, code=self.code, errors=(FieldError(pointer, self.why),))


class Labels:
    """What all rows of a data set agree on: labels all names or all integers, texts all pairs or all single."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.highest: int | None = None
        self.pairs: bool | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Raises `Fault` for a row of the other kind."""
        label = row["label"]
        if isinstance(label, str):
            self.names.add(label)
        else:
            self.highest = max(label, self.highest or 0)
        if self.names and self.highest is not None:
            raise Fault("labels must be all names or all integers, in every split", "label")
        if len(self.names) > MAX_LABELS:
            raise Fault(f"there are more than {MAX_LABELS} different labels", "label")
        if self.pairs is None:
            self.pairs = "text_pair" in row
        if self.pairs != ("text_pair" in row):
            raise Fault("text_pair must stand in every row or in none", "text_pair")

    def summary(self) -> dict[str, Any]:
        """As the data set's row keeps it."""
        return {"names": sorted(self.names) or None, "integers": self.highest, "pairs": bool(self.pairs)}


def read_rows(source: Source, split: str, target: Path, labels: Labels, limits: Limits) -> tuple[int, Stored]:
    """Check a split and write it to `target`; returns its rows and the file. Raises `Invalid` for a bad row."""
    digest, size, count = hashlib.sha256(), 0, 0
    lines = _Lines(source)
    try:
        with target.open("xb") as file:
            for row in _rows(lines):
                clean = _checked(row)
                labels.add(clean)
                data = json.dumps(clean, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                digest.update(data)
                file.write(data)
                size, count = size + len(data), count + 1
                if size > limits.total:
                    raise limits.refusal()
        if count == 0:
            raise Fault("a split needs at least one row")
    except Fault as fault:
        raise fault.at(split, max(1, lines.number)) from fault
    return count, Stored(size, digest.hexdigest())


class _Lines:
    """Lines of bounded UTF-8 with their ends; `number` is that of the line given last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._buffer = bytearray()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            self.number += 1
            if len(line) > MAX_LINE:
                raise Fault(f"a line holds at most {MAX_LINE} bytes")
            if b"\0" in line:
                raise Fault("it has NUL bytes")
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise Fault("it is not UTF-8") from error

    def _next(self) -> bytes:
        """The next line, or more than `MAX_LINE` bytes of it; empty at the end."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            piece = self._source.read(PIECE) if searched <= MAX_LINE else b""
            if not piece:
                end = searched - 1
                break
            self._buffer += piece
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line


def _rows(lines: _Lines) -> Iterator[dict[str, Any]]:
    texts = iter(lines)
    first = next(texts, "")
    if first.startswith("PAR1"):
        raise Fault("Parquet is not available in this version; send JSONL or CSV", code="NOT_AVAILABLE")
    if first.lstrip().startswith("["):
        raise Fault("this looks like one JSON array; write one object per line")
    if not first.strip() or first.lstrip().startswith("{"):
        yield from _json_rows(first, texts)
    else:
        yield from _csv_rows(first, texts)


def _json_rows(first: str, texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    text: str | None = first
    while text is not None:
        if text.strip():
            try:
                row = loads(text.encode())
            except JsonRefused as error:
                raise Fault(f"it {error}") from error
            if not isinstance(row, dict):
                raise Fault("a row is a JSON object")
            yield row
        text = next(texts, None)


def _csv_rows(header: str, texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_FIELD)
    try:
        columns = next(csv.reader([header], strict=True), [])
        if not {"text", "label"} <= set(columns) or len(set(columns)) != len(columns):
            raise Fault("it is neither JSONL nor CSV whose header names text and label, each once")
        for values in csv.reader(texts, strict=True):
            if not values:
                continue
            if len(values) != len(columns):
                raise Fault("it has more or fewer fields than the header")
            row: dict[str, Any] = dict(zip(columns, values, strict=True))
            row["label"] = int(row["label"]) if _INTEGER.fullmatch(row["label"]) else row["label"]
            yield row
    except csv.Error as error:
        raise Fault("it is not well-formed CSV, or a field is too long") from error


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its columns in order. Raises `Fault`."""
    if "labels" in row:
        raise Fault("multi-label rows are not available in this version; use label", "labels", "NOT_AVAILABLE")
    if not row.keys() <= set(_COLUMNS):
        raise Fault(f"a column is none of {', '.join(_COLUMNS)}")
    clean = {"text": _text(row.get("text"), "text")}
    if row.get("text_pair") is not None:
        clean["text_pair"] = _text(row["text_pair"], "text_pair")
    return {**clean, "label": _label(row.get("label"))}


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise Fault(f"{column} must be a string", column)
    if len(value.encode("utf-8", "surrogatepass")) > MAX_FIELD:
        raise Fault(f"{column} holds at most {MAX_FIELD} bytes", column)
    if not plain(value):
        raise Fault(f"{column} has NUL or a lone surrogate", column)
    return value


def _label(value: Any) -> int | str:
    if type(value) is int and 0 <= value < MAX_LABELS:
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable():
        return value
    raise Fault(
        f"label must be an integer from 0 to {MAX_LABELS - 1}, or a name of 1 to {MAX_LABEL} printable characters",
        "label",
    )
