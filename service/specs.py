"""The language of a compression job: frozen, strict, versioned; validated at the door and executed unchanged."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

TaskName: TypeAlias = Literal["text-classification"]
StructureName: TypeAlias = Literal["attention_heads", "ffn_neurons", "layers", "weights"]
ExportName: TypeAlias = Literal["huggingface", "huggingface_custom", "onnx", "onnx_int8"]
RuntimeName: TypeAlias = Literal["torch", "onnxruntime", "onnxruntime_int8"]

CRITERIA_OF: dict[str, frozenset[str]] = {
    "attention_heads": frozenset({"magnitude", "gradient", "taylor", "random"}),
    "ffn_neurons": frozenset({"magnitude", "gradient", "taylor", "random"}),
    "layers": frozenset({"magnitude", "gradient", "taylor", "similarity", "random"}),
    "weights": frozenset({"magnitude", "gradient", "taylor", "random"}),
}
"""Which criterion can score the units of which structure."""

DATA_CRITERIA = frozenset({"gradient", "taylor", "similarity"})
"""Criteria that run the network over rows of the data set."""

QUALITY_METRICS: dict[str, tuple[str, ...]] = {"text-classification": ("accuracy", "macro_f1")}
"""What `evaluate` measures per task."""


def _printable(value: Any) -> Any:
    if isinstance(value, str) and any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise PydanticCustomError("text", "control characters and lone surrogates are not allowed")
    return value


def _not_available(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("not_available", "not available in this version; leave it out")
    return value


Name: TypeAlias = Annotated[
    str, BeforeValidator(_printable), StringConstraints(min_length=1, max_length=200, strip_whitespace=True)
]
ShortText: TypeAlias = Annotated[str, BeforeValidator(_printable), StringConstraints(max_length=256)]
Metadata: TypeAlias = Annotated[dict[ShortText, ShortText], Field(max_length=16)]
NotYet: TypeAlias = Annotated[Any, BeforeValidator(_not_available)]
Identifier: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z]+_[0-9A-Z]{26}$")]


class Part(BaseModel):
    """Base of every part of a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Magnitude(Part):
    """Norm of a unit's weights; the smallest are cut (Han et al., 2015; Li et al., 2017)."""

    kind: Literal["magnitude"]
    norm: Literal[1, 2] = 1


class Gradient(Part):
    """Norm of the loss gradient of a unit's weights; the least sensitive are cut."""

    kind: Literal["gradient"]
    samples: int = Field(512, ge=1, le=1_000_000, description="rows of train that are read")


class Taylor(Part):
    """First-order estimate of the loss change when a unit is removed (Molchanov et al., 2019)."""

    kind: Literal["taylor"]
    samples: int = Field(512, ge=1, le=1_000_000, description="rows of train that are read")


class Similarity(Part):
    """Block influence: one minus the cosine between a layer's input and output (Men et al., 2024)."""

    kind: Literal["similarity"]
    samples: int = Field(512, ge=1, le=1_000_000, description="rows of train that are read")


class Random(Part):
    """Units cut by chance under the job's seed: the control that every criterion must beat."""

    kind: Literal["random"]


Criterion: TypeAlias = Annotated[Magnitude | Gradient | Taylor | Similarity | Random, Field(discriminator="kind")]


class Cut(Part):
    """One cut: a share of the units of one structure, chosen by one criterion."""

    structure: StructureName
    ratio: float | None = Field(None, gt=0, lt=1, description="share of the units cut; not needed with an N:M pattern")
    scope: Literal["uniform", "global"] = "uniform"
    pattern: Literal["unstructured", "2:4"] | None = Field(None, description="of structure weights only")
    criterion: Criterion

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.criterion.kind not in CRITERIA_OF[self.structure]:
            allowed = ", ".join(sorted(CRITERIA_OF[self.structure]))
            raise PydanticCustomError("criterion", f"cannot score {self.structure}; use one of {allowed}")
        if self.pattern and self.structure != "weights":
            raise PydanticCustomError("pattern", "only structure weights takes a pattern; leave it out")
        if self.pattern == "2:4":
            if self.ratio not in (None, 0.5):
                raise PydanticCustomError("ratio", "pattern 2:4 cuts exactly half; leave ratio out")
            if self.scope != "uniform":
                raise PydanticCustomError("scope", "pattern 2:4 cuts every row alike; leave scope out")
        elif self.ratio is None:
            raise PydanticCustomError("ratio", "ratio is needed: the share of units to cut, between 0 and 1")
        return self

    @property
    def share(self) -> float:
        """The share of units cut."""
        return 0.5 if self.ratio is None else self.ratio


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
    """What is cut, and in how many rounds."""

    cuts: list[Cut] = Field(min_length=1, max_length=16)
    target: NotYet = None
    schedule: Schedule = OneShot(kind="one_shot")


class AdamW(Part):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]
    weight_decay: float = Field(0.01, ge=0, le=1)


class Sgd(Part):
    """Stochastic gradient descent, optionally with (Nesterov) momentum."""

    kind: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0")
        return self


Optimizer: TypeAlias = Annotated[AdamW | Sgd, Field(discriminator="kind")]


class Distillation(Part):
    """Learn the softened outputs of the `before` network too (Hinton et al., 2015)."""

    temperature: float = Field(2.0, gt=0, le=100)
    weight: float = Field(0.5, gt=0, le=1, description="of the distillation loss against the task's own")


class Training(Part):
    """Epochs over `train` with warm-up and decay; the best epoch on `validation` is kept."""

    epochs: int = Field(ge=1, le=1000)
    learning_rate: float = Field(5e-5, gt=0, le=10)
    batch_size: int = Field(32, ge=1, le=4096)
    optimizer: Optimizer = AdamW(kind="adamw")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps that the learning rate rises")
    decay: Literal["linear", "cosine", "constant"] = "linear"


class Finetuning(Training):
    """Training of the pruned network; `epochs` is the total over all rounds."""

    regularization: NotYet = None
    distillation: Distillation | None = None


class Benchmark(Part):
    """Shapes at which latency is measured."""

    batch_sizes: list[Annotated[int, Field(ge=1, le=1024)]] = Field([1, 8], min_length=1, max_length=8)
    sequence_length: int = Field(128, ge=1, le=8192, description="tokens")
    threads: int = Field(1, ge=1, le=256)


class QualityGoal(Part):
    """A bound on a quality metric; `max_drop` in the metric's units, against the original."""

    metric: Literal["accuracy", "macro_f1"]
    max_drop: float | None = Field(None, ge=0)
    min_value: float | None = None
    max_value: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if sum(bound is not None for bound in (self.max_drop, self.min_value, self.max_value)) != 1:
            raise PydanticCustomError("goal", "give exactly one of max_drop, min_value and max_value")
        return self


class LatencyGoal(Part):
    """At least this many times faster than the original, by p50 of one runtime at one batch size."""

    metric: Literal["latency"]
    min_speedup: float = Field(gt=0)
    runtime: RuntimeName = "onnxruntime"
    batch_size: int | None = Field(None, ge=1, description="default: the first of the benchmark")


class RatioGoal(Part):
    """At most this share of the original's bytes on disk, or of its parameters."""

    metric: Literal["size", "parameters"]
    max_ratio: float = Field(gt=0)


Goal: TypeAlias = Annotated[QualityGoal | LatencyGoal | RatioGoal, Field(discriminator="metric")]


class JobSpec(Part):
    """The whole order of one compression job."""

    version: Literal[1] = 1
    name: Name
    metadata: Metadata = {}
    model_id: Identifier
    task: TaskName
    dataset_id: Identifier | None = None
    baseline: Training | None = None
    pruning: Pruning
    finetuning: Finetuning | None = None
    acceptance: list[Goal] = Field([], max_length=16)
    exports: list[ExportName] = Field(["huggingface"], min_length=1, max_length=4)
    benchmark: Benchmark | None = Benchmark()
    max_length: int | None = Field(None, ge=1, le=8192, description="tokens; default min(128, the model's limit)")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    priority: int = Field(0, ge=0, le=9, description="9 goes first")
    timeout: int = Field(86400, ge=1, le=30 * 86400, description="seconds")
    webhook_url: NotYet = None

    @model_validator(mode="after")
    def _distinct_exports(self) -> Self:
        if len(set(self.exports)) != len(self.exports):
            raise PydanticCustomError("exports", "each export can be named once")
        return self

    @property
    def needs_data(self) -> bool:
        """Whether any part of the job reads rows of a data set."""
        return (
            self.baseline is not None
            or self.finetuning is not None
            or any(cut.criterion.kind in DATA_CRITERIA for cut in self.pruning.cuts)
            or any(isinstance(goal, QualityGoal) for goal in self.acceptance)
        )
