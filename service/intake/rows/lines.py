"""Lines of a split, and the rows that stand on them: JSONL or CSV by content."""

import csv
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeAlias

from service.errors import FieldError, Invalid
from service.intake.sources import PIECE, Source
from service.intake.strict_json import JsonRefused, loads

MAX_LINE = 1 << 20
MAX_FIELD = 256 << 10
_INTEGER = re.compile(r"0|[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")

Row: TypeAlias = dict[str, Any]


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


class Lines:
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


def rows_of(lines: Lines, needed: Collection[str]) -> Iterator[Row]:
    """Objects of JSONL, or records of a CSV file whose header names the columns `needed`; none: no CSV is taken.

    Raises `Fault`.
    """
    texts = iter(lines)
    first = next(texts, "")
    if first.startswith("PAR1"):
        raise Fault("Parquet is not available in this version; send JSONL or CSV", code="NOT_AVAILABLE")
    if first.lstrip().startswith("["):
        raise Fault("this looks like one JSON array; write one object per line")
    if not first.strip() or first.lstrip().startswith("{"):
        yield from _json_rows(first, texts)
    elif needed:
        yield from _csv_rows(first, texts, needed)
    else:
        raise Fault("it is not JSONL, and rows of this task hold lists, which CSV cannot")


def _json_rows(first: str, texts: Iterator[str]) -> Iterator[Row]:
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


def _csv_rows(header: str, texts: Iterator[str], needed: Collection[str]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD)
    try:
        columns = next(csv.reader([header], strict=True), [])
        if not set(needed) <= set(columns) or len(set(columns)) != len(columns):
            raise Fault(f"it is neither JSONL nor CSV whose header names {' and '.join(sorted(needed))}, each once")
        for values in csv.reader(texts, strict=True):
            if not values:
                continue
            if len(values) != len(columns):
                raise Fault("it has more or fewer fields than the header")
            pairs = zip(columns, values, strict=True)
            yield {column: _CONVERTED.get(column, str)(value) for column, value in pairs}
    except csv.Error as error:
        raise Fault("it is not well-formed CSV, or a field is too long") from error


def _label(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def _score(text: str) -> float | str:
    return float(text) if _NUMBER.fullmatch(text) else text


_CONVERTED: dict[str, Callable[[str], Any]] = {"label": _label, "score": _score}
"""Columns whose fields in a CSV file, all of them text, mean something else."""
