"""How long the service takes to come back: each time is asserted against its promise and told in a table at the end.

The times travel as properties of the tests' reports, which reach the table from other processes too.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

PROPERTY = "recovery"
HEAD = ("fault", "back after", "promised", "leases")


class Recovery:
    """Takes the times of one test."""

    def __init__(self, record: Callable[[str, object], None], leases: str) -> None:
        """`record` is pytest's `record_property`; `leases` is `short` or `production`."""
        self._record, self.leases = record, leases

    @contextmanager
    def within(self, seconds: float, fault: str) -> Iterator[None]:
        """Time the block, from the end of the fault to what it waits for; fails when it takes longer than promised."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._record(PROPERTY, [fault, took, seconds, self.leases])
        assert took <= seconds, f"{fault}: {took:.1f} s, promised are {seconds:g} s"


def table(reports: Iterable[Any]) -> list[str]:
    """Lines of the table of what was measured in these test reports; nothing without any."""
    rows = [value for report in reports for name, value in report.user_properties if name == PROPERTY]
    if not rows:
        return []
    cells = [HEAD, *((fault, f"{took:.1f} s", f"{most:g} s", leases) for fault, took, most, leases in sorted(rows))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
