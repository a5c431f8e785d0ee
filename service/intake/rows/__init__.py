"""Rows of data sets: checked one by one, written again as plain JSONL."""

import hashlib
import json
from pathlib import Path

from service.intake.limits import Limits
from service.intake.rows.kinds import KINDS, Kind, kind_of
from service.intake.rows.lines import MAX_LINE, Fault, Lines, rows_of
from service.intake.sources import Source
from service.intake.unpacking import Stored

__all__ = ["KINDS", "MAX_LINE", "SPLITS", "Kind", "kind_of", "read_rows"]

SPLITS = ("train", "validation", "test", "calibration")


def read_rows(source: Source, split: str, target: Path, kind: Kind, limits: Limits) -> tuple[int, Stored]:
    """Check a split and write it to `target`; returns its rows and the file. Raises `Invalid` for a bad row."""
    digest, size, count = hashlib.sha256(), 0, 0
    lines = Lines(source)
    try:
        with target.open("xb") as file:
            for row in rows_of(lines, kind.needed):
                data = json.dumps(kind.check(row), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
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
