from typing import Any

import pytest
from pydantic import TypeAdapter

from service.specs import Goal
from workers.engine.verdict import measured_speedup, verdict


def measurement(accuracy: float, parameters: int, p50: tuple[float, float, float]) -> dict[str, Any]:
    labels = (("torch", 1), ("onnxruntime", 1), ("onnxruntime", 8))
    return {
        "metrics": {"accuracy": {"value": accuracy, "low": accuracy, "high": accuracy}},
        "parameters": parameters,
        "size": parameters * 4,
        "latency": [
            {"runtime": runtime, "batch_size": batch, "sequence_length": 128, "p50": seconds, "p95": seconds}
            for (runtime, batch), seconds in zip(labels, p50, strict=True)
        ],
    }


BEFORE = measurement(0.90, 1000, (0.030, 0.020, 0.100))
AFTER = measurement(0.88, 500, (0.015, 0.010, 0.040))


@pytest.mark.parametrize(
    ("goal", "measured", "passed"),
    [
        ({"metric": "accuracy", "max_drop": 0.02}, 0.02, True),
        ({"metric": "accuracy", "max_drop": 0.019}, 0.02, False),
        ({"metric": "accuracy", "min_value": 0.88}, 0.88, True),
        ({"metric": "accuracy", "min_value": 0.89}, 0.88, False),
        ({"metric": "accuracy", "max_value": 0.88}, 0.88, True),
        ({"metric": "accuracy", "max_value": 0.87}, 0.88, False),
        ({"metric": "macro_f1", "max_drop": 0.5}, None, False),
        ({"metric": "latency", "min_speedup": 2.0}, 2.0, True),
        ({"metric": "latency", "min_speedup": 2.01}, 2.0, False),
        ({"metric": "latency", "min_speedup": 2.5, "batch_size": 8}, 2.5, True),
        ({"metric": "latency", "min_speedup": 2.0, "runtime": "torch"}, 2.0, True),
        ({"metric": "latency", "min_speedup": 0.1, "runtime": "onnxruntime_int8"}, None, False),
        ({"metric": "size", "max_ratio": 0.5}, 0.5, True),
        ({"metric": "parameters", "max_ratio": 0.49}, 0.5, False),
    ],
)
def test_each_goal_is_judged_at_its_bound(goal: dict[str, Any], measured: float | None, passed: bool) -> None:
    judged = verdict([TypeAdapter(Goal).validate_python(goal)], BEFORE, AFTER)[0]
    assert judged["metric"] == goal["metric"]
    assert goal.items() <= judged["goal"].items()
    assert judged["measured"] == (None if measured is None else pytest.approx(measured))
    assert judged["passed"] is passed


def test_a_gain_is_a_negative_drop_and_passes() -> None:
    goal = TypeAdapter(Goal).validate_python({"metric": "accuracy", "max_drop": 0.0})
    judged = verdict([goal], AFTER, BEFORE)[0]
    assert judged["measured"] == pytest.approx(-0.02)
    assert judged["passed"]


def test_no_goals_give_no_lines() -> None:
    assert verdict([], BEFORE, AFTER) == []


def test_speedup_needs_the_row_on_both_sides() -> None:
    assert measured_speedup(BEFORE, AFTER, "onnxruntime", 8) == pytest.approx(2.5)
    assert measured_speedup(BEFORE, AFTER | {"latency": []}, "onnxruntime") is None
    assert measured_speedup(BEFORE, AFTER, "onnxruntime", 2) is None
