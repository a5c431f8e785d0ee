"""What happened, in the order in which it was noted: what clients asked and were answered, and what was broken.

One JSON object on a line. `time` is in seconds of the monotonic clock since the run began. A client's request is two
lines with the same `op`: `invoke`, then `ok` (2xx: it happened), `fail` (4xx or never sent: it did not) or `info` (it
may have happened, now or later). What is broken has the type `fault`.
"""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

Entry: TypeAlias = dict[str, Any]
FILE = "history.jsonl"


class History:
    """Takes entries from any thread, and writes each to a file at once."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Entry] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._last_op = 0
        self._file = (folder / FILE).open("w", encoding="utf-8")

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def invoke(self, client: str, kind: str, **asked: Any) -> int:
        """Note that a client asks; returns the number of its operation."""
        with self._lock:
            self._last_op += 1
            self._note(client, "invoke", op=self._last_op, kind=kind, **asked)
            return self._last_op

    def complete(self, client: str, outcome: str, op: int, **answer: Any) -> None:
        """Note how it ended: `ok`, `fail` or `info`."""
        with self._lock:
            self._note(client, outcome, op=op, **answer)

    def fault(self, kind: str, **about: Any) -> None:
        """Note that something was broken or healed."""
        with self._lock:
            self._note("nemesis", "fault", kind=kind, **about)

    def _note(self, client: str, type_: str, **more: Any) -> None:
        entry = {"time": round(self.now(), 6), "client": client, "type": type_, **more}
        self.entries.append(entry)
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Write what is not yet on the disk."""
        with self._lock:
            self._file.close()


def read(folder: Path) -> list[Entry]:
    """The entries that a run has left in a folder."""
    with (folder / FILE).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Operation:
    """One request: what was asked, when it began and ended, and what came back."""

    number: int
    client: str
    kind: str
    begin: float
    end: float = inf
    """Infinite for `info`: what may have happened may still happen."""
    answered: float = inf
    outcome: str = "info"
    asked: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def tenant(self) -> str:
        """Whose client asked."""
        return self.client.partition("/")[0]

    @property
    def ok(self) -> bool:
        """Whether it was acknowledged."""
        return self.outcome == "ok"

    @property
    def status(self) -> int | None:
        """The answer's status; None when there was none."""
        return self.answer.get("status")

    def __str__(self) -> str:
        about = " ".join(f"{name}={value}" for name, value in self.asked.items() if name in ("job", "key", "path"))
        return f"op {self.number} ({self.kind} {about}, {self.begin:.2f}-{self.answered:.2f} s, {self.status})"


_NOT_ASKED = {"time", "client", "type", "op", "kind"}


def operations(entries: Iterable[Entry]) -> list[Operation]:
    """Requests of a history, in the order in which they began; those without an end are `info`."""
    begun: dict[int, Operation] = {}
    for entry in entries:
        more = {name: value for name, value in entry.items() if name not in _NOT_ASKED}
        if entry["type"] == "invoke":
            number = entry["op"]
            begun[number] = Operation(number, entry["client"], entry["kind"], entry["time"], asked=more)
        elif entry["type"] in ("ok", "fail", "info"):
            was, at = begun[entry["op"]], entry["time"]
            end = inf if entry["type"] == "info" else at
            begun[was.number] = Operation(
                was.number, was.client, was.kind, was.begin, end, at, entry["type"], was.asked, more
            )
    return list(begun.values())
