"""Report lines: how the engine tells its supervisor what it is doing, one JSON object per line of a pipe."""

import json
import math
import time
from collections.abc import Callable
from typing import Any, TextIO

PROGRESS_SECONDS = 0.5
METRIC_SECONDS = 0.2
"""How long points may lie here: sending each on its own would wake the supervisor for it and slow the steps down."""
STEPS_SHARE = 0.65
"""Share of a job's progress that scoring, training and evaluation take; exports, checks and benchmark are the rest."""
EARLIEST_FORECAST = 0.02


class Reporter:
    """Writes report lines and keeps what the report will need: phases' seconds, curves and warnings."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._started = time.monotonic()
        self._phase: str | None = None
        self._phase_started = self._started
        self._told = self._flushed = 0.0
        self._step = 0
        self._fraction = 0.0
        self.total_steps = 1
        self.steps_share = STEPS_SHARE
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.warnings: list[dict[str, str]] = []

    def _write(self, **line: Any) -> None:
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        self._lines.flush()
        self._flushed = now

    def phase(self, name: str | None) -> None:
        """A new phase begins; None ends the last one."""
        now = time.monotonic()
        if self._phase is not None:
            self.seconds[self._phase] = round(self.seconds.get(self._phase, 0.0) + now - self._phase_started, 3)
        self._phase, self._phase_started = name, now
        if name is not None:
            self._write(type="phase", phase=name)

    def advance(self, steps: int = 1) -> None:
        """Steps of `total_steps` are done: the part of the job that reads rows, `steps_share` of its progress."""
        self._step = min(self._step + steps, self.total_steps)
        self.reach(self.steps_share * self._step / self.total_steps)

    def portion(self, steps: int) -> Callable[[float], None]:
        """Tells `steps` of the total bit by bit: call it with the share of them that is done, up to 1."""
        told = 0

        def tell(share: float) -> None:
            nonlocal told
            done = round(steps * share)
            self.advance(done - told)
            told = done

        return tell

    def reach(self, fraction: float) -> None:
        """So much of the job is done; told at most every half second."""
        now = time.monotonic()
        self._fraction = max(self._fraction, fraction)
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        elapsed = now - self._started
        left = elapsed * (1 - self._fraction) / self._fraction if self._fraction >= EARLIEST_FORECAST else None
        self._write(
            type="progress",
            fraction=round(self._fraction, 4),
            step=self._step,
            total_steps=self.total_steps,
            seconds_remaining=None if left is None else round(left, 1),
        )

    def metric(self, name: str, step: int, value: float) -> None:
        """One point of a curve, sent a little later; a value that is not finite becomes null."""
        finite = value if math.isfinite(value) else None
        self.curves.setdefault(name, []).append({"step": step, "value": finite})
        self._lines.write(json.dumps({"type": "metric", "name": name, "step": step, "value": finite}) + "\n")
        if (now := time.monotonic()) - self._flushed >= METRIC_SECONDS:
            self._flush(now)

    def event(self, event: str, message: str, level: str = "info", **data: Any) -> None:
        """Something worth telling."""
        self._write(type="event", event=event, level=level, message=message, data=data)

    def cut(self, structure: str, criterion: str, removed: int, of: int) -> dict[str, Any]:
        """So many units were cut; returns what the report tells of it."""
        done: dict[str, Any] = {"structure": structure, "criterion": criterion, "removed": removed, "of": of}
        self.event("pruning.cut", f"Cut {removed} of {of} {structure} by {criterion}.", **done)
        return done

    @property
    def step(self) -> int:
        """How much of `total_steps` is done."""
        return self._step

    def checkpoint(self, name: str) -> None:
        """A checkpoint lies under this name; whatever was told before it is told for good."""
        self._write(type="checkpoint", name=name, step=self._step)

    def memory(self) -> dict[str, Any]:
        """What it knows of the job, as JSON values, for the reporter of a process that goes on with it."""
        now = time.monotonic()
        seconds = dict(self.seconds)
        if self._phase is not None:
            seconds[self._phase] = round(seconds.get(self._phase, 0.0) + now - self._phase_started, 3)
        known = {"elapsed": now - self._started, "step": self._step, "fraction": self._fraction}
        return known | {"seconds": seconds, "curves": self.curves, "warnings": self.warnings}

    def remember(self, memory: dict[str, Any]) -> None:
        """Goes on from the `memory` of another one."""
        self._started -= memory["elapsed"]
        self._step, self._fraction = memory["step"], memory["fraction"]
        self.seconds, self.curves, self.warnings = memory["seconds"], memory["curves"], memory["warnings"]

    def aside(self, code: str, message: str) -> None:
        """A warning of this run, no matter to the result: neither the report nor the model's card has it."""
        self._write(type="warning", code=code, message=message)

    def warning(self, code: str, message: str) -> None:
        """Something that the client should know of the result, told once however many rounds find it."""
        found = {"code": code, "message": message}
        if found not in self.warnings:
            self.warnings.append(found)
            self._write(type="warning", **found)

    def error(self, code: str, message: str, blame: str, retryable: bool) -> None:
        """Why the job ends here."""
        self._write(type="error", code=code, message=message, blame=blame, retryable=retryable)
