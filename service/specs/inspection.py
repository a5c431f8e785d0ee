"""The order of an inspection: what is looked at, by which criteria, and which shares are cut on trial."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from service.specs import JobSpec, TaskName
from service.specs.criteria import (
    CRITERIA_OF,
    Activation,
    Fisher,
    Gradient,
    Magnitude,
    Random,
    SecondOrder,
    Similarity,
    Taylor,
)
from service.specs.cuts import Cut, Pruning, StructureName
from service.specs.part import ExpiresAfter, Identifier, Metadata, Name, Part
from service.specs.training import Training

Scoring: TypeAlias = Annotated[
    Magnitude | Gradient | Taylor | Fisher | Activation | SecondOrder | Similarity | Random,
    Field(discriminator="kind"),
]
"""Criteria that leave the network as it is: those that train it would inspect another one."""

SOLVED = frozenset({"activation", "second_order"})
"""Criteria that give single weights no score but new values, block by block."""


def _each_kind_once(criteria: list[Scoring]) -> list[Scoring]:
    if len({criterion.kind for criterion in criteria}) != len(criteria):
        raise PydanticCustomError("criteria", "each kind of criterion can be named once")
    return criteria


def _scored_once(structures: list[StructureName]) -> list[StructureName]:
    if "vocabulary" in structures:
        raise PydanticCustomError("structures", "the vocabulary is cut by use; nothing scores its rows")
    if len(set(structures)) != len(structures):
        raise PydanticCustomError("structures", "each structure can be named once")
    return structures


Criteria: TypeAlias = Annotated[list[Scoring], Field(min_length=1, max_length=8), AfterValidator(_each_kind_once)]
Structures: TypeAlias = Annotated[list[StructureName], Field(min_length=1, max_length=8), AfterValidator(_scored_once)]
Ratio: TypeAlias = Annotated[float, Field(gt=0, lt=1)]


class InspectionSpec(Part):
    """What a client may say of an inspection; all of it may be left out."""

    version: Literal[1] = 1
    name: Name = "inspection"
    metadata: Metadata = Field({})
    task: TaskName | None = Field(None, description="default: the model's own; without a head sentence-embedding")
    dataset_id: Identifier | None = Field(None, description="needed by criteria that read rows, and by the loss")
    baseline: Training | None = Field(None, description="first trains a head for the task; needs the split train")
    criteria: Criteria | None = Field(
        None, description="default: magnitude; with rows to read taylor, fisher and similarity too"
    )
    structures: Structures | None = Field(
        None, description="default: those of attention_heads, ffn_neurons, layers and weights that the family can lose"
    )
    scope: Literal["uniform", "global"] = Field("uniform", description="how shares on trial are spread, as in a cut")
    near_zero: float = Field(
        0.1, gt=0, le=1, description="share of a matrix's root mean square up to which a weight counts as near zero"
    )
    ratios: list[Ratio] = Field(
        [0.1, 0.25, 0.5, 0.75], min_length=1, max_length=16, description="shares of the units that are cut on trial"
    )
    rows: int = Field(256, ge=1, le=1_000_000, description="rows that the loss is measured on, after every trial")
    max_length: int | None = Field(None, ge=1, le=8192, description="tokens; default min(128, the model's limit)")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    priority: int = Field(0, ge=0, le=9, description="9 goes first")
    timeout: int = Field(86400, ge=1, le=30 * 86400, description="seconds")
    expires_after: ExpiresAfter = None


class Inspection(InspectionSpec):
    """The order as it is stored and carried out: the model is named and every default filled in."""

    kind: Literal["inspection"] = "inspection"
    model_id: Identifier
    criteria: Criteria
    structures: Structures

    @property
    def cuts(self) -> list[Cut]:
        """What is tried: every structure by every criterion that can score it, at the largest of the ratios."""
        return [
            Cut(structure=structure, ratio=max(self.ratios), scope=self.scope, criterion=criterion, repair=False)
            for structure in self.structures
            for criterion in self.criteria
            if criterion.kind in CRITERIA_OF[structure] and not (structure == "weights" and criterion.kind in SOLVED)
        ]

    def as_job(self, cut: Cut) -> JobSpec:
        """The job that would make one of the cuts: what the door checks, and what the engine loads the network by."""
        return JobSpec(
            name=self.name,
            model_id=self.model_id,
            task=self.task or "masked-lm",  # left out only where the family is not known, and nothing is run
            dataset_id=self.dataset_id,
            baseline=self.baseline,
            pruning=Pruning(cuts=[cut]),
            benchmark=None,
            max_length=self.max_length,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
        )
