"""A history and a final state, laid out for the rules that judge them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from tests.nemesis.history import Entry, Operation, operations
from tests.nemesis.state import State

Row: TypeAlias = dict[str, Any]


_ABOUT = {"job", "model", "dataset"}


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


class Sight(NamedTuple):
    """A job as one answer showed it."""

    operation: Operation
    job: Row


class Evidence:
    """What the rules look at."""

    def __init__(self, entries: Iterable[Entry], state: State) -> None:
        entries = list(entries)
        self.operations = operations(entries)
        self.faults = [entry for entry in entries if entry["type"] == "fault"]
        self.state = state
        self.jobs: dict[str, Row] = {row["id"]: row for row in state["jobs"]}
        self.attempts = self._of_jobs("attempts")
        self.events = self._of_jobs("events")
        self.artifacts = self._of_jobs("artifacts")
        self._not_refused: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for about in operation.asked.keys() & _ABOUT if operation.outcome != "fail" else ():
                self._not_refused[operation.kind, operation.asked[about]].append(operation)
        self.sights: dict[str, list[Sight]] = defaultdict(list)
        for operation in self.operations:
            for job in operation.answer.get("jobs", []) if operation.ok else []:
                self.sights[job["id"]].append(Sight(operation, job))

    def _of_jobs(self, table: str) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {id_: [] for id_ in self.jobs}
        for row in self.state[table]:
            found.setdefault(row["job_id"], []).append(row)
        return found

    def of_kind(self, *kinds: str) -> Iterator[Operation]:
        """Requests of these kinds."""
        return (operation for operation in self.operations if operation.kind in kinds)

    def may_have_happened(self, kind: str, about: str) -> list[Operation]:
        """Requests of a kind about a job, a model or a data set that were not refused."""
        return self._not_refused.get((kind, about), [])


Rule: TypeAlias = Callable[[Evidence], Iterator[str]]
"""Tells of what it finds; its docstring's first line is the promise."""
