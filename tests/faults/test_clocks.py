"""Clocks that are wrong, or are set while a job runs: a lease knows the database's alone."""

import ast
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Site
from tests.faults.test_outages import order
from tests.live import LiveService, kill_tree
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]
DAY = 86400
LEASES = frozenset({"lease_until", "seen_until", "not_before", "leased_until", "due_at"})
WALL_CLOCKS = frozenset({"utc_now", "time", "time_ns", "now"})


class Clock:
    """A wall clock that processes started under it share."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, ahead: int) -> None:
        """Put it so many seconds ahead."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(str(ahead))
        fresh.replace(self.file)

    @contextmanager
    def rules(self, live: LiveService) -> Iterator[None]:
        """Processes that are started in the block have this clock."""
        told = {**live.environment, "PYTHONPATH": str(Path(__file__).with_name("clock")), "CLOCK_FILE": str(self.file)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LiveService, "environment", told)
            yield


def test_no_lease_is_lost_or_doubled_by_clocks_that_are_wrong_or_jump(site: Site, tmp_path: Path) -> None:
    live = site.live
    jumping, behind = Clock(tmp_path / "jumping"), Clock(tmp_path / "behind")
    behind.set(-DAY)
    assert live.worker is not None
    live.worker.terminate()
    live.worker.wait()
    with jumping.rules(live):
        live.start_worker()
    trained = site.submit()
    site.running(trained)
    with behind.rules(live):
        second = live.launch("worker")
    try:
        live.wait_for(lambda: len(live.workers()) == 2, "the other worker")
        swift, engine = order(site), site.engine()
        engine.suspend()  # so that the job lasts longer than what is done to its worker
        for ahead in (DAY, -DAY):
            jumping.set(ahead)
            watch(live, 1.5 * live.settings.lease_seconds)
        engine.resume()
        for job_id in (swift, trained):
            site.assert_one_result(job_id, ["succeeded"])
    finally:
        for process in (second, live.worker):
            kill_tree(process)
        wait_for(lambda: not live.workers(), seconds=10 + live.settings.lease_seconds)


def watch(live: LiveService, seconds: float) -> None:
    """Two workers are alive, all the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert len(live.workers()) == 2
        time.sleep(0.1)


# Nothing of a lease is reckoned by the clock of a host


def test_leases_are_written_and_compared_in_the_databases_time_alone() -> None:
    parts = [
        part for folder in ("service", "workers") for file in (ROOT / folder).rglob("*.py") for part in leases(file)
    ]
    assert len(parts) > 15
    for place, part in parts:
        calls = {name_of(call.func) for call in ast.walk(part) if isinstance(call, ast.Call)}
        assert not calls & WALL_CLOCKS, f"{place}: {ast.unparse(part)}"


def leases(file: Path) -> Iterator[tuple[str, ast.expr]]:
    """Values that a lease, or a time at which something is due, is given or compared with."""
    for node in ast.walk(ast.parse(file.read_text())):
        place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.keyword) and node.arg in LEASES:
            yield place, node.value
        elif isinstance(node, ast.Compare) and any(name_of(side) in LEASES for side in (node.left, *node.comparators)):
            yield place, node
        elif isinstance(node, ast.Dict):
            yield from (
                (place, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in LEASES
            )
        elif isinstance(node, ast.Assign) and any(name_of(target) in LEASES for target in node.targets):
            yield place, node.value


def name_of(node: ast.expr) -> str:
    """The last word of a name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
