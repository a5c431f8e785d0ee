"""What an inspection found: the shape that the engine fills, the service stores and clients get.

It is bounded: neurons and single weights are told by quantiles, all scores stand in the job's `report/report.json`.
"""

from typing import Annotated, TypeAlias

from pydantic import Field

from service.specs.cuts import StructureName
from service.specs.inspection import Scoring
from service.specs.part import Part

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
IDLE_SCORE = 0.05
"""Share of a group's score that its idle units hold together at most."""

Layer: TypeAlias = Annotated[int | None, Field(description="index in its stack, from 0; null where it spans several")]
Square: TypeAlias = list[list[float]]


class Near(Part):
    """How many weights of a layer or of one matrix are near zero."""

    stack: str = Field(description="`encoder` or `decoder` of a model that has both; else empty")
    layer: Layer
    matrix: str | None = Field(description="the tensor's name; null of a layer's sum")
    weights: int
    share: float = Field(description="of the weights that are near zero, exact zeros among them")
    zeros: float = Field(description="share of the weights that are exactly zero")


class NearZero(Part):
    """Weights near zero in the projections of all layers, as the model was uploaded."""

    threshold: float = Field(description="share of a matrix's root mean square; of a normal distribution 0.1 holds 8 %")
    weights: int
    share: float
    zeros: float
    layers: list[Near]
    matrices: list[Near] = Field(description="by share, the highest first; at most 200")


class GroupScores(Part):
    """What the units of one group are worth: of an attention, a feed-forward part, a stack of layers."""

    stack: str
    layer: Layer
    place: str = Field(description="which of several attentions of a layer; else empty")
    units: int
    mean: float
    idle: float = Field(description="share of the units, the lowest first, that hold 5 % of the group's score together")
    quantiles: list[float] = Field(description="of the scores, at 0, 0.1, 0.25, 0.5, 0.75, 0.9 and 1")
    scores: list[float] | None = Field(description="of every head, layer or hidden dimension; null of smaller units")


class Trial(Part):
    """What a share of the units holds, and the loss without them, before any repair or fine-tuning."""

    ratio: float
    removed: int
    of: int
    score: float = Field(description="share of the whole score that goes; of norms the mean over groups")
    loss: float | None = Field(description="mean loss of the task; null without rows or where what is left has none")
    agreement: float | None = Field(description="share of predictions that stay the same; null where they are vectors")


class Scored(Part):
    """One structure by one criterion: what its units are worth, and what cutting the lowest of them costs."""

    structure: StructureName
    criterion: Scoring
    groups: list[GroupScores]
    trials: list[Trial]


class Alike(Part):
    """How much alike the layers of a stack are."""

    stack: str
    states: Square | None = Field(
        description="mean cosine, over tokens, of what enters the first layer and what leaves each; null without rows"
    )
    weights: Square | None = Field(
        description="cosine of the layers' parameters, each matrix and bias alike; null where their shapes differ"
    )


class Findings(Part):
    """All that an inspection found."""

    loss: float | None = Field(description="mean loss of the whole network on the same rows; null without any")
    rows: int = Field(description="how many rows the loss was measured on")
    split: str | None = Field(description="where they are from")
    near_zero: NearZero
    scored: list[Scored]
    alike: list[Alike]
    highlights: list[str] = Field(description="what stands out, in words")
