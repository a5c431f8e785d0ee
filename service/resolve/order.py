"""What is checked at the door of a job: a spec, the model and the data set it is about, and the faults found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from service.catalog import Family, family_of
from service.errors import FieldError, Invalid
from service.specs import DATA_CRITERIA, TRAINING_CRITERIA, JobSpec, QualityGoal
from service.tables import Dataset, Model

DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True)
class Fault:
    """One reason why an order cannot work."""

    code: str
    pointer: str
    detail: str


Faults: TypeAlias = Iterator[Fault]


def refusal(faults: Sequence[Fault]) -> Invalid:
    """The error of an order with faults: the code of the first, and all of them as its errors."""
    errors = tuple(FieldError(fault.pointer, fault.detail) for fault in faults)
    return Invalid(faults[0].detail, code=faults[0].code, errors=errors)


@dataclass(frozen=True)
class Order:
    """A spec and what it is about."""

    spec: JobSpec
    model: Model
    dataset: Dataset | None
    devices: list[str] | None
    """Kinds of device that live workers offer; None while no worker is known."""

    @property
    def family(self) -> Family:
        """The model's family."""
        return family_of(self.model.family)

    @property
    def uses_data(self) -> bool:
        """Whether rows are read, because a part needs them or because a data set is there to measure on."""
        return self.spec.needs_data or self.dataset is not None

    @property
    def splits(self) -> set[str]:
        """Splits of the data set; none without one."""
        return set() if self.dataset is None else set(self.dataset.splits)

    @property
    def can_score(self) -> bool:
        """Whether there are rows to score units by."""
        return not self.splits.isdisjoint({"train", "calibration"})

    @property
    def longest(self) -> int | None:
        """The model's limit in tokens; None for an unknown family."""
        limit: int | None = self.model.facts["max_length"]
        return limit

    @property
    def max_length(self) -> int | None:
        """Tokens of a text that are read."""
        default = None if self.longest is None else min(DEFAULT_MAX_LENGTH, self.longest)
        return self.spec.max_length or default

    @property
    def benchmark(self) -> dict[str, Any] | None:
        """What is measured: nothing where it is off, which it is for jobs without data unless it was asked for."""
        spec = self.spec
        if spec.benchmark is None or (not self.uses_data and "benchmark" not in spec.model_fields_set):
            return None
        length = min(spec.benchmark.sequence_length, self.longest or spec.benchmark.sequence_length)
        return {**spec.benchmark.model_dump(mode="json"), "sequence_length": length}


def training_parts(spec: JobSpec) -> list[str]:
    """Pointers to what trains, which needs the split train."""
    parts = [f"/{name}" for name in ("baseline", "finetuning") if getattr(spec, name) is not None]
    cuts = enumerate(spec.pruning.cuts)
    return [*parts, *(f"/pruning/cuts/{index}/criterion" for index, cut in cuts if cut.kind in TRAINING_CRITERIA)]


def scoring_parts(spec: JobSpec) -> list[str]:
    """Pointers to what reads rows of train, or where it is missing of calibration."""
    parts = [] if spec.pruning.target is None else ["/pruning/target"]
    for index, cut in enumerate(spec.pruning.cuts):
        if cut.kind in DATA_CRITERIA - TRAINING_CRITERIA:
            parts.append(f"/pruning/cuts/{index}/criterion")
        if cut.repair:
            parts.append(f"/pruning/cuts/{index}/repair")
    return parts


def reading_parts(spec: JobSpec) -> list[str]:
    """Pointers to cuts that read the texts of any split."""
    cuts = enumerate(spec.pruning.cuts)
    return [f"/pruning/cuts/{index}" for index, cut in cuts if cut.structure == "vocabulary"]


def quality_goals(spec: JobSpec) -> list[str]:
    """Pointers to goals that are measured on rows."""
    goals = enumerate(spec.acceptance)
    return [f"/acceptance/{index}" for index, goal in goals if isinstance(goal, QualityGoal)]
