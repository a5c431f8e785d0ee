"""Report lines: one JSON object each, no NaN, progress that only rises."""

import io
import json
import math
from typing import Any

import pytest

from workers.engine import reporter as module
from workers.engine.reporter import STEPS_SHARE, Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_is_throttled_rises_and_forecasts(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.total_steps = 100
    for _ in range(100):
        clock.now += 0.125
        reporter.advance()
    clock.now += 10.0
    reporter.reach(0.2)
    found = lines(stream)
    fractions = [line["fraction"] for line in found]
    assert len(found) == 26, "one every half second, and the last"
    assert fractions == sorted(fractions) and fractions[-1] == STEPS_SHARE
    assert found[0]["seconds_remaining"] is None
    assert found[-1]["seconds_remaining"] == pytest.approx(22.5 * (1 - STEPS_SHARE) / STEPS_SHARE, abs=0.1)


def test_a_portion_is_told_bit_by_bit_and_adds_up(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.total_steps = 20
    tell = reporter.portion(10)
    for share in (0.26, 0.5, 1.0):
        clock.now += 1.0
        tell(share)
    assert [line["step"] for line in lines(stream)] == [3, 5, 10]


def test_seconds_add_up_per_phase(clock: Clock) -> None:
    reporter = Reporter(io.StringIO())
    for phase, seconds in (("loading", 1.0), ("pruning", 2.0), ("finetuning", 4.0), ("pruning", 0.5)):
        reporter.phase(phase)
        clock.now += seconds
    reporter.phase(None)
    assert reporter.seconds == {"loading": 1.0, "pruning": 2.5, "finetuning": 4.0}


def test_what_is_not_finite_becomes_null() -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    for value in (0.5, math.nan, math.inf):
        reporter.metric("finetuning/loss", 1, value)
    reporter.warning("INPUT_TRUNCATED", "two lines\nof text")
    reporter.event("pruning.cut", "Cut.", removed=3)
    reporter.error("DIVERGED", "the loss", "user", False)
    found = lines(stream)
    assert [line["value"] for line in found[:3]] == [0.5, None, None]
    assert [line["type"] for line in found[3:]] == ["warning", "event", "error"]
    assert reporter.curves["finetuning/loss"][1] == {"step": 1, "value": None}
    assert reporter.warnings == [{"code": "INPUT_TRUNCATED", "message": "two lines\nof text"}]


def test_points_are_sent_together_and_before_whatever_comes_next(clock: Clock) -> None:
    class Pipe(io.StringIO):
        sent = ""

        def flush(self) -> None:
            self.sent = self.getvalue()

    pipe = Pipe()
    reporter = Reporter(pipe)
    reporter.metric("loss", 0, 1.0)
    for step in range(1, 5):
        clock.now += 0.06
        reporter.metric("loss", step, 1.0)
        assert len(pipe.sent.splitlines()) == (1 if step < 4 else 5)
    reporter.metric("loss", 5, 1.0)
    assert len(pipe.sent.splitlines()) == 5
    reporter.checkpoint("1")
    assert [json.loads(line)["type"] for line in pipe.sent.splitlines()] == ["metric"] * 6 + ["checkpoint"]
