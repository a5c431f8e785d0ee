"""The journal of a job: which stretches of it are over, so that another process can go on from its last checkpoint.

A job is `BASELINE`, then for every round its cuts and its training. What surgery did is done again to the network as
it was uploaded, then the weights are put back; see `Subject.operations`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from workers.engine.checkpoint import Checkpoint, Unusable, fingerprint_of, forget_old, read, write
from workers.engine.interruption import Interruption
from workers.engine.recovery import Halfway
from workers.engine.reporter import Reporter
from workers.engine.snapshot import Values, chance_of, put_back, put_back_chance, values_of
from workers.engine.subject import Subject
from workers.engine.surgery import operate_again
from workers.engine.work import Work

BASELINE = 0
CHECKPOINT_SECONDS = 60.0


def cuts_of(number: int) -> int:
    """The stretch of a round, counted from 1, in which it cuts."""
    return 2 * number - 1


def training_of(number: int) -> int:
    """The stretch of a round in which it trains."""
    return 2 * number


def _trains(stretch: int) -> bool:
    return stretch % 2 == 0


@dataclass(frozen=True)
class Terms:
    """What the supervisor asks for besides the order; it changes no result, up to rounding."""

    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """How often to write a checkpoint while training."""
    batch_divisor: int = 1
    """Into how many parts batches are divided, so that they take less memory."""
    interruption: Interruption = field(default_factory=Interruption)


class Journal:
    """Where a job stands, and the checkpoints that tell of it."""

    def __init__(self, work: Work, reporter: Reporter, terms: Terms) -> None:
        """Opens `in/checkpoint` where there is one; warns where it is of no use."""
        self._work, self._reporter, self._terms = work, reporter, terms
        self._fingerprint = fingerprint_of(work.spec)
        self._network: PreTrainedModel | None = None
        self._before: PreTrainedModel | None = None
        self._subject: Subject | None = None
        self._generator: torch.Generator | None = None
        self._halfway: Halfway | None = None
        self._written, self._number = time.monotonic(), 0
        self._stretch = BASELINE
        self.cuts: list[dict[str, Any]] = []
        """What every cut of every round removed."""
        self.step = 0
        """The last step of the last fine-tuning that is over."""
        self._found = self._open(work.folder / "in" / "checkpoint")

    def _open(self, folder: Path) -> Checkpoint | None:
        if not folder.exists():
            return None
        try:
            found = read(folder, self._fingerprint)
        except Unusable as error:
            message = f"The checkpoint could not be used, for {error}; the job started anew."
            self._reporter.aside("CHECKPOINT_UNUSABLE", message)
            return None
        state = found.state
        self._number, self._stretch, self.step = state["number"], state["stretch"], state["step"]
        self.cuts = state["cuts"]
        self._reporter.remember(state["reporter"])
        step = self._reporter.step
        self._reporter.event("checkpoint.resumed", f"Goes on from the checkpoint at step {step}.", step=step)
        return found

    def follow(self, network: PreTrainedModel) -> None:
        """`network` is what was uploaded; it becomes what it was before the first cut, as far as the job has come."""
        self._network, found = network, self._found
        if found is None:
            return
        if "operations" in found.state:
            if "before" in found.tensors:
                put_back(network, found.tensors["before"])
        else:
            put_back(network, found.tensors["network"])
            self._let_go(found)

    def follow_surgery(self, subject: Subject, generator: torch.Generator) -> None:
        """`subject` is whole; it becomes what it was when the checkpoint was written, as does the cuts' `generator`."""
        self._subject, self._before, self._generator = subject, subject.teacher, generator
        if (found := self._found) is None:
            return
        masks = iter(found.tensors["operations"][str(number)] for number in range(len(found.tensors["operations"])))
        operations = [(name, [next(masks) for _ in range(count)]) for name, count in found.state["operations"]]
        operate_again(subject, operations, self._work)
        put_back(subject.network, found.tensors["network"])
        generator.set_state(found.tensors["chance"]["cuts"].clone())
        self._let_go(found)

    def _let_go(self, found: Checkpoint) -> None:
        """Takes from a checkpoint what comes last: PyTorch's chance, which surgery draws on, and a course under way."""
        put_back_chance(self._work.device, found.tensors["chance"])
        if found.state["course"] is not None:
            values, moments, best = (found.tensors[name] for name in ("course", "moments", "best"))
            self._halfway = Halfway(found.state["course"], values, moments, best)
        self._found = None

    def enters(self, stretch: int) -> bool:
        """Whether a stretch has to be gone through; False where it is over."""
        if stretch < self._stretch:
            return False
        self._stretch = stretch
        self._terms.interruption.be_patient(_trains(stretch))
        return True

    def leaves(self, stretch: int, *, cheap: bool = False) -> None:
        """A stretch is over. The end of a `cheap` one, another soon following, is no reason for a checkpoint."""
        self._stretch = stretch + 1
        self._terms.interruption.be_patient(True)
        if not cheap or self._due:
            self._keep(None)
        self._terms.interruption.be_patient(False)

    def halfway(self) -> Halfway | None:
        """Where the course that was under way stood, once."""
        halfway, self._halfway = self._halfway, None
        return halfway

    def between_batches(self, tell: Callable[[], Halfway]) -> None:
        """Writes a checkpoint when it is time to; ends the process where that was asked for."""
        if self._due:
            self._keep(tell())

    @property
    def _due(self) -> bool:
        waited = time.monotonic() - self._written
        return self._terms.interruption.requested or waited >= self._terms.checkpoint_seconds

    def _keep(self, course: Halfway | None) -> None:
        if self._network is None:  # a job without data, which is soon done again
            return
        self._number += 1
        folder = self._work.folder / "checkpoints"
        name = f"{self._number:06}"
        try:
            write(self._checkpoint(self._network, course), folder / name, self._fingerprint)
            self._reporter.checkpoint(name)
        except (OSError, SafetensorError):
            self._reporter.event("checkpoint.failed", "A checkpoint could not be written.", level="warning")
        self._written = time.monotonic()
        forget_old(folder)
        if self._terms.interruption.requested:
            self._terms.interruption.leave()

    def _checkpoint(self, network: PreTrainedModel, course: Halfway | None) -> Checkpoint:
        state = {"number": self._number, "stretch": self._stretch, "step": self.step, "cuts": self.cuts}
        state |= {"reporter": self._reporter.memory(), "course": None if course is None else course.counts}
        tensors: dict[str, Values] = {"network": values_of(network), "chance": chance_of(network.device)}
        if course is not None:
            tensors |= {"course": course.values, "moments": course.moments, "best": course.best}
        if self._subject is not None and self._generator is not None:
            operations = self._subject.operations
            state["operations"] = [[name, len(masks)] for name, masks in operations]
            masks = (mask for _, masks in operations for mask in masks)
            tensors["operations"] = {str(number): mask for number, mask in enumerate(masks)}
            tensors["chance"] |= {"cuts": self._generator.get_state()}
        if self._before is not None and self._work.spec.baseline is not None:
            tensors["before"] = values_of(self._before)
        return Checkpoint(state, tensors)
