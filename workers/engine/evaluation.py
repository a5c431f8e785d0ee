"""Quality of a network on a split, with 95 % intervals, and counts of its parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

Compute: TypeAlias = Callable[[NDArray[np.float64]], Sequence[float]]

RESAMPLES = 1000


class Evaluation(ABC):
    """What a network did on the rows of a split: a mean `loss` and the means to get metrics of any of the rows."""

    loss: float
    rows: int

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The task's metrics over all rows, in the order of `service.specs.QUALITY_METRICS`."""

    @abstractmethod
    def resampled(self, rows: NDArray[np.int64]) -> tuple[float, ...]:
        """The same metrics, in the same order, of some rows, which may repeat; fast, since it is called a thousand
        times."""


class Summed(Evaluation):
    """Metrics of statistics that add up over rows."""

    def __init__(self, loss: float, names: Sequence[str], statistics: NDArray[np.float64], compute: Compute) -> None:
        """`statistics` of (rows, any number); `compute` takes their sums and gives the metrics that `names` name."""
        self.loss, self.rows = loss, len(statistics)
        self._names, self._statistics, self._compute = names, statistics, compute

    def metrics(self) -> dict[str, float]:
        """Of the sums over all rows."""
        return dict(zip(self._names, self._compute(self._statistics.sum(0)), strict=True))

    def resampled(self, rows: NDArray[np.int64]) -> tuple[float, ...]:
        """Of sums that count every row as often as it was drawn."""
        times = np.bincount(rows, minlength=self.rows).astype(np.float64)
        return tuple(self._compute(times @ self._statistics))


@dataclass(frozen=True)
class Unmeasured(Evaluation):
    """A mean loss and no metrics."""

    loss: float
    rows: int

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def resampled(self, rows: NDArray[np.int64]) -> tuple[float, ...]:
        """None."""
        return ()


def intervals(evaluation: Evaluation, seed: int) -> dict[str, dict[str, float]]:
    """Each metric as `{"value", "low", "high"}`: percentiles 2.5 and 97.5 of a bootstrap over rows (Efron, 1979)."""
    generator, rows = np.random.default_rng(seed), evaluation.rows
    samples = [evaluation.resampled(generator.integers(0, rows, rows)) for _ in range(RESAMPLES)]
    low, high = np.percentile(np.array(samples), (2.5, 97.5), axis=0)
    return {
        name: {"value": value, "low": float(low[column]), "high": float(high[column])}
        for column, (name, value) in enumerate(evaluation.metrics().items())
    }


def macro_f1(hits: NDArray[Any], references: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Unweighted mean of F1 over the classes that occur or were predicted, given counts of (classes,)."""
    occurring = (references + predictions) > 0
    found = 2 * hits[occurring] / (references + predictions)[occurring]
    return float(found.mean()) if len(found) else 0.0


def parameter_counts(network: PreTrainedModel) -> dict[str, int]:
    """`parameters` and `nonzero_parameters`; tied ones count once."""
    parameters = list(network.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "nonzero_parameters": sum(int(torch.count_nonzero(parameter)) for parameter in parameters),
    }
