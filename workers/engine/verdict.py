"""Whether a job's goals were met: each measured on the original and the pruned network in one run."""

from collections.abc import Sequence
from typing import Any

from service.specs import LOWER_IS_BETTER, Goal, LatencyGoal, QualityGoal, RatioGoal


def verdict(goals: Sequence[Goal], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Judges each goal; returns `{"metric", "goal", "measured", "passed"}` in the order given.

    `before` and `after` are the measurements of the original and the pruned network. `measured` is what the bound is
    about: the drop, value, speed-up or ratio, or None where it was not measured, which never passes.
    """
    return [
        {"metric": goal.metric, "goal": goal.model_dump(mode="json"), "measured": measured, "passed": passed}
        for goal in goals
        for measured, passed in [_judge(goal, before, after)]
    ]


def _judge(goal: Goal, before: dict[str, Any], after: dict[str, Any]) -> tuple[float | None, bool]:
    if isinstance(goal, QualityGoal):
        return _judge_quality(goal, before, after)
    if isinstance(goal, LatencyGoal):
        speedup = measured_speedup(before, after, goal.runtime, goal.batch_size)
        return speedup, speedup is not None and speedup >= goal.min_speedup
    return _judge_ratio(goal, before, after)


def _judge_quality(goal: QualityGoal, before: dict[str, Any], after: dict[str, Any]) -> tuple[float | None, bool]:
    found = after["metrics"].get(goal.metric)
    if found is None:
        return None, False
    value = float(found["value"])
    if goal.min_value is not None:
        return value, value >= goal.min_value
    if goal.max_value is not None:
        return value, value <= goal.max_value
    original = before["metrics"].get(goal.metric)
    if original is None or goal.max_drop is None:
        return None, False
    drop = float(original["value"]) - value
    # The metrics are quotients of counts: a drop that equals the bound must not fail by the last binary digit.
    drop = round(-drop if goal.metric in LOWER_IS_BETTER else drop, 12)
    return drop, drop <= goal.max_drop


def _judge_ratio(goal: RatioGoal, before: dict[str, Any], after: dict[str, Any]) -> tuple[float | None, bool]:
    if not before.get(goal.metric) or after.get(goal.metric) is None:
        return None, False
    ratio = after[goal.metric] / before[goal.metric]
    return ratio, ratio <= goal.max_ratio


def measured_speedup(
    before: dict[str, Any], after: dict[str, Any], runtime: str, batch_size: int | None = None
) -> float | None:
    """p50 of the original over that of the pruned network, or None; `batch_size` is by default the first measured."""
    rows = [[row for row in side["latency"] if row["runtime"] == runtime] for side in (before, after)]
    if batch_size is None and rows[0]:
        batch_size = rows[0][0]["batch_size"]
    p50 = [next((row["p50"] for row in side if row["batch_size"] == batch_size), None) for side in rows]
    return p50[0] / p50[1] if p50[0] and p50[1] else None
