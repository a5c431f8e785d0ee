"""What is cut, in what order and in how many rounds."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.specs.criteria import CRITERIA_OF, Criterion, Regularization
from service.specs.part import Part

StructureName: TypeAlias = Literal[
    "attention_heads", "ffn_neurons", "layers", "attention_layers", "ffn_layers", "hidden_size", "vocabulary", "weights"
]
StackName: TypeAlias = Literal["encoder", "decoder"]
Pattern: TypeAlias = Literal["unstructured", "2:4", "4:8", "block"]

N_OF_M: dict[str, tuple[int, int]] = {"2:4": (2, 4), "4:8": (4, 8)}
"""Patterns that keep N of every M neighbours in a row."""


class Cut(Part):
    """One cut: a share of the units of one structure, chosen by one criterion."""

    structure: StructureName = Field(
        description="attention_layers, ffn_layers: the self-attention or the FFN of whole layers; cross-attention stays"
    )
    stack: StackName | None = Field(None, description="of an encoder-decoder: the side that is cut; default both")
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of the units cut; not needed with an N:M pattern, a threshold, vocabulary"
    )
    scope: Literal["uniform", "global"] = Field(
        "uniform",
        description="where the ratio holds: in every layer, or globally; weights by activation or second_order then "
        "lose less in layers with more outliers (OWL: Yin et al., 2024)",
    )
    pattern: Pattern | None = Field(None, description="of structure weights only; default unstructured")
    block_size: int = Field(4, ge=2, le=256, description="rows and columns of a block, with pattern block")
    criterion: Criterion | None = None
    repair: bool | None = Field(
        None, description="least squares correction of what remains; default: where rows are read; heads, neurons"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.structure == "vocabulary":
            self._check_vocabulary()
            return self
        if self.criterion is None:
            raise PydanticCustomError("criterion", "criterion is needed: what scores the units")
        if self.criterion.kind not in CRITERIA_OF[self.structure]:
            allowed = ", ".join(sorted(CRITERIA_OF[self.structure]))
            raise PydanticCustomError("criterion", f"cannot score {self.structure}; use one of {allowed}")
        if self.repair and self.structure not in ("attention_heads", "ffn_neurons"):
            raise PydanticCustomError("repair", "only attention_heads and ffn_neurons can be repaired; leave it out")
        self._check_pattern()
        self._check_ratio()
        return self

    def _check_vocabulary(self) -> None:
        if self.criterion is not None or self.ratio is not None or self.pattern is not None or self.repair:
            raise PydanticCustomError(
                "vocabulary", "vocabulary keeps what the data set uses: it takes no ratio, criterion, pattern or repair"
            )

    def _check_pattern(self) -> None:
        if self.pattern and self.structure != "weights":
            raise PydanticCustomError("pattern", "only structure weights takes a pattern; leave it out")
        if self.pattern in N_OF_M:
            if self.ratio not in (None, 0.5):
                raise PydanticCustomError("ratio", f"pattern {self.pattern} cuts exactly half; leave ratio out")
            if self.scope != "uniform":
                raise PydanticCustomError("scope", f"pattern {self.pattern} cuts every row alike; leave scope out")

    def _check_ratio(self) -> None:
        if self.threshold is not None and self.ratio is not None:
            raise PydanticCustomError("ratio", "a threshold says what is cut; give it or ratio, not both")
        if self.ratio is None and self.pattern not in N_OF_M and self.threshold is None:
            raise PydanticCustomError("ratio", "ratio is needed: the share of units to cut, between 0 and 1")

    @property
    def threshold(self) -> float | None:
        """The level at or below which units are cut, where the criterion has one."""
        return self.criterion.threshold if isinstance(self.criterion, Regularization) else None

    @property
    def share(self) -> float:
        """The share of units cut; half with an N:M pattern."""
        return 0.5 if self.ratio is None else self.ratio

    @property
    def kind(self) -> str:
        """What chooses the units: the criterion, or `use` for the vocabulary."""
        return self.criterion.kind if self.criterion is not None else "use"


class Target(Part):
    """What should be left of the transformer layers; the service chooses heads and neurons for it."""

    metric: Literal["parameters", "flops", "latency"]
    ratio: float = Field(gt=0, lt=1, description="share that is left")
    samples: int = Field(1024, ge=1, le=1_000_000, description="rows of train that are read")

    @model_validator(mode="after")
    def _available(self) -> Self:
        if self.metric == "latency":
            raise PydanticCustomError("not_available", "not available in this version; use flops or parameters")
        return self


class OneShot(Part):
    """All cuts at once, then fine-tuning."""

    kind: Literal["one_shot"]


class Gradual(Part):
    """Cut a little, fine-tune, cut again; the share follows a cubic curve (Zhu and Gupta, 2017) or a line."""

    kind: Literal["gradual"]
    rounds: int = Field(4, ge=2, le=100)
    curve: Literal["cubic", "linear"] = "cubic"


Schedule: TypeAlias = Annotated[OneShot | Gradual, Field(discriminator="kind")]


class Pruning(Part):
    """What is cut: a list of cuts in their order, or a target; and in how many rounds."""

    cuts: list[Cut] = Field([], max_length=16)
    target: Target | None = None
    schedule: Schedule = OneShot(kind="one_shot")

    @property
    def zeroes_weights(self) -> bool:
        """Whether single weights are set to zero, which training has to leave there."""
        return any(cut.structure == "weights" for cut in self.cuts)

    @model_validator(mode="after")
    def _cuts_or_target(self) -> Self:
        if bool(self.cuts) == (self.target is not None):
            raise PydanticCustomError("pruning", "give either cuts, at least one, or a target")
        return self
