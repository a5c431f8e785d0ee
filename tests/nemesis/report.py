"""What a run tells: a line now and then, and a table at its end."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.nemesis.evidence import Violation
from tests.nemesis.history import Entry, History, operations
from tests.nemesis.state import State

_MOST_OF_A_RULE = 10


def progress(history: History) -> str:
    """How far it is."""
    entries = list(history.entries)
    types = Counter(entry["type"] for entry in entries)
    last = next((entry["kind"] for entry in reversed(entries) if entry["type"] == "fault"), "nothing")
    counts = "  ".join(f"{types[name]} {name}" for name in ("ok", "fail", "info", "fault"))
    return f"{history.now():6.0f} s  {counts}  last: {last}"


def table(entries: Iterable[Entry], state: State, violations: Sequence[Violation]) -> list[str]:
    """Lines: requests by kind and outcome, what was broken, how jobs ended, what contradicts the promises."""
    entries = list(entries)
    done = Counter((one.kind, one.outcome) for one in operations(entries))
    lines = [f"{'requests':18}{'ok':>7}{'fail':>7}{'info':>7}"]
    for kind in sorted({kind for kind, _ in done}):
        lines.append(f"{kind:18}" + "".join(f"{done[kind, outcome]:7}" for outcome in ("ok", "fail", "info")))
    lines += _counted("broken", Counter(entry["kind"] for entry in entries if entry["type"] == "fault"))
    lines += _counted("jobs", Counter(row["status"] for row in state["jobs"]))
    lines += _counted("attempts", Counter(str(row["outcome"]) for row in state["attempts"]))
    lines += _counted("webhooks", Counter(row["status"] for row in state["deliveries"]))
    return [*lines, *_told(violations)]


def _counted(head: str, counts: Counter[str]) -> list[str]:
    return ["", f"{head:40}{sum(counts.values()):7}", *(f"  {name:38}{counts[name]:7}" for name in sorted(counts))]


def _told(violations: Sequence[Violation]) -> list[str]:
    counts = Counter(violation.rule for violation in violations)
    lines = ["", f"violations: {len(violations)}"]
    for rule, count in counts.items():
        first = [violation.detail for violation in violations if violation.rule == rule][:_MOST_OF_A_RULE]
        lines += [f"  {rule}: {count}", *(f"    {detail}" for detail in first)]
    return lines
