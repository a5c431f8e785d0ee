"""Clients work while everything is killed, and what they were told is compared with what is left.

The long form: `python -m tests.nemesis --minutes 20`.
"""

from pathlib import Path

from tests.nemesis import plan
from tests.nemesis.run import Order, run

SECONDS = 36.0
PAUSES = (0.5, 6.0)
SETTLE_SECONDS = {"short": 150.0, "production": 300.0}
TRAINED_SHARE = 0.04
SEED = 3744
"""Draws every kind of fault."""


def test_the_minute_breaks_everything() -> None:
    drawn, at = set(), 0.0
    for fault in plan.faults(SEED, PAUSES):
        if (at := at + fault.pause) > SECONDS:
            break
        drawn.add(fault.kind)
    assert drawn == set(plan.FAULTS)


def test_every_promise_holds_while_everything_breaks(leases: str, tmp_path: Path) -> None:
    verdict = run(Order(SECONDS, SEED, leases, tmp_path, PAUSES, SETTLE_SECONDS[leases], TRAINED_SHARE))
    print("\n".join(verdict.table))
    assert verdict.violations == [], f"history in {tmp_path}"
    assert verdict.settled is not None, f"not quiet after {SETTLE_SECONDS[leases]} s"
    counts = verdict.counts
    assert counts["acknowledged"] > 10 and counts["succeeded"] > 3 and counts["broken"] > 3, counts
