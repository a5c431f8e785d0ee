"""Clients work for a minute while everything is killed, and what they were told is compared with what is left.

The long form: `python -m tests.nemesis --minutes 20`.
"""

from pathlib import Path

from tests.nemesis.run import Order, run

SECONDS = 50.0
SETTLE_SECONDS = {"short": 90.0, "production": 300.0}
TRAINED_SHARE = 0.05
SEED = 1


def test_every_promise_holds_while_everything_breaks(leases: str, tmp_path: Path) -> None:
    verdict = run(Order(SECONDS, SEED, leases, tmp_path, SETTLE_SECONDS[leases], TRAINED_SHARE))
    print("\n".join(verdict.table))
    assert verdict.violations == []
    assert verdict.settled is not None, f"not quiet after {SETTLE_SECONDS[leases]} s"
    counts = verdict.counts
    assert counts["acknowledged"] > 10 and counts["succeeded"] > 3 and counts["broken"] > 3, counts
