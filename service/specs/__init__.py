"""The language of a compression job: frozen, strict, versioned; validated at the door and executed unchanged."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.specs.criteria import CRITERIA_OF, DATA_CRITERIA, TRAINING_CRITERIA, Criterion, Magnitude, SecondOrder
from service.specs.cuts import N_OF_M, Cut, Gradual, OneShot, Pruning, StackName, StructureName, Target
from service.specs.goals import (
    LOWER_IS_BETTER,
    QUALITY_METRICS,
    Goal,
    LatencyGoal,
    QualityGoal,
    RatioGoal,
    RuntimeName,
)
from service.specs.part import ExpiresAfter, Identifier, Metadata, Name, Part
from service.specs.training import Distillation, Finetuning, Regularizer, Sgd, Training
from service.specs.webhook import WebhookUrl

__all__ = [
    "CRITERIA_OF",
    "DATA_CRITERIA",
    "LOWER_IS_BETTER",
    "N_OF_M",
    "QUALITY_METRICS",
    "TRAINING_CRITERIA",
    "Benchmark",
    "Criterion",
    "Cut",
    "Distillation",
    "ExpiresAfter",
    "ExportName",
    "Finetuning",
    "Goal",
    "Gradual",
    "Identifier",
    "JobSpec",
    "LatencyGoal",
    "Magnitude",
    "Metadata",
    "Name",
    "OneShot",
    "Part",
    "Pruning",
    "QualityGoal",
    "RatioGoal",
    "Regularizer",
    "RuntimeName",
    "SecondOrder",
    "Sgd",
    "StackName",
    "StructureName",
    "Target",
    "TaskName",
    "Training",
]

TaskName: TypeAlias = Literal[
    "text-classification",
    "question-answering",
    "translation",
    "token-classification",
    "causal-lm",
    "masked-lm",
    "sentence-embedding",
]
ExportName: TypeAlias = Literal["huggingface", "huggingface_custom", "onnx", "onnx_int8"]


class Benchmark(Part):
    """Shapes at which latency is measured."""

    batch_sizes: list[Annotated[int, Field(ge=1, le=1024)]] = Field([1, 8], min_length=1, max_length=8)
    sequence_length: int = Field(128, ge=1, le=8192, description="tokens")
    threads: int = Field(1, ge=1, le=256)


class JobSpec(Part):
    """The whole order of one compression job."""

    version: Literal[1] = 1
    name: Name
    metadata: Metadata = Field({})
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
    stride: int | None = Field(
        None, ge=1, le=8192, description="tokens that windows overlap in question answering; default half of max_length"
    )
    beams: int = Field(4, ge=1, le=32, description="width of the beam search that translations are judged by")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    priority: int = Field(0, ge=0, le=9, description="9 goes first")
    timeout: int = Field(86400, ge=1, le=30 * 86400, description="seconds")
    expires_after: ExpiresAfter = None
    reuse: bool = Field(False, description="answer with a job that has given this result before, where there is one")
    webhook_url: WebhookUrl | None = Field(
        None, description="told of this job alone, signed with the secret of the webhook endpoint without a URL"
    )

    @model_validator(mode="after")
    def _distinct_exports(self) -> Self:
        if len(set(self.exports)) != len(self.exports):
            raise PydanticCustomError("exports", "each export can be named once")
        return self

    @property
    def recipe(self) -> Training:
        """How the network is trained: as `finetuning` says, or by its defaults where a criterion alone has to train."""
        return self.finetuning or Training(epochs=1)

    @property
    def needs_data(self) -> bool:
        """Whether any part of the job reads rows of a data set."""
        cuts = self.pruning.cuts
        return (
            self.baseline is not None
            or self.finetuning is not None
            or self.pruning.target is not None
            or any(cut.kind in DATA_CRITERIA or cut.structure == "vocabulary" or cut.repair for cut in cuts)
            or any(isinstance(goal, QualityGoal) for goal in self.acceptance)
        )
