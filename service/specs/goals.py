"""What a pruned model must reach to be accepted."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.specs.part import Part

RuntimeName: TypeAlias = Literal["torch", "onnxruntime", "onnxruntime_int8"]

QUALITY_METRICS: dict[str, tuple[str, ...]] = {
    "text-classification": ("accuracy", "macro_f1"),
    "question-answering": ("exact_match", "f1"),
    "translation": ("bleu", "chrf"),
    "token-classification": ("f1", "accuracy"),
    "causal-lm": ("perplexity",),
    "masked-lm": ("perplexity",),
    "sentence-embedding": ("spearman", "agreement"),
}
"""What is measured per task, the one that the best epoch is chosen by first."""

LOWER_IS_BETTER = frozenset({"perplexity"})
"""Quality metrics that get worse by rising."""


PERCENT = {"question-answering": ("exact_match", "f1"), "translation": ("bleu", "chrf")}
"""Metrics from 0 to 100, by task."""


class QualityGoal(Part):
    """A bound on a quality metric; `max_drop` in the metric's units, against the original.

    Exact match, BLEU, chrF and the F1 of question answering go from 0 to 100, perplexity from 1, others from 0 to 1.
    """

    metric: Literal["accuracy", "macro_f1", "exact_match", "f1", "bleu", "chrf", "perplexity", "spearman", "agreement"]
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
