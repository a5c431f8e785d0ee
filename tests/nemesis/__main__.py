"""`python -m tests.nemesis`: a longer run than that of the suite, or a verdict about an earlier one."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.nemesis import checker, history, report, state

_SETTLE_SECONDS = {"short": 120.0, "production": 300.0}
_PAUSES = {"short": (1.0, 12.0), "production": (5.0, 30.0)}
_TRAINED_SHARE = 0.1


def main() -> int:
    """Exit code 1 with violations, or when the service did not become quiet."""
    given = _arguments()
    if given.judge is not None:
        entries, left = history.read(given.judge), state.read(given.judge)
        violations = checker.judge(entries, left)
        print("\n".join(report.table(entries, left, violations)))
        return bool(violations)
    from tests.nemesis.run import Order, run  # brings torch, which a judge has no use for

    folder = given.out or Path(tempfile.mkdtemp(prefix="secateur-nemesis-"))
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    pauses, settle = _PAUSES[given.leases], _SETTLE_SECONDS[given.leases]
    order = Order(given.minutes * 60, seed, given.leases, folder, pauses, settle, _TRAINED_SHARE)
    verdict = run(order)
    print("\n".join(verdict.table))
    quiet = "never" if verdict.settled is None else f"after {verdict.settled:.0f} s"
    print(f"quiet {quiet}; history in {folder}; again: --seed {seed} --leases {given.leases}")
    return bool(verdict.violations) or verdict.settled is None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--leases", choices=("short", "production"), default="short")
    parser.add_argument("--out", type=Path, help="folder for history, state and logs; default: a temporary one")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="only judge what an earlier run has left there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
