"""Quality of a network on a split, with 95 % intervals, and counts of its parameters."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import PreTrainedModel

RESAMPLES = 1000


def quality(found: dict[str, Any]) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of `predictions` against `references`, each in [0, 1]."""
    references, predictions = found["references"], found["predictions"]
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
    }


def intervals(found: dict[str, Any], seed: int) -> dict[str, dict[str, float]]:
    """Each metric as `{"value", "low", "high"}`: percentiles 2.5 and 97.5 of a bootstrap over rows (Efron, 1979)."""
    values = quality(found)
    references, predictions = np.asarray(found["references"]), np.asarray(found["predictions"])
    generator = np.random.default_rng(seed)
    classes = int(max(references.max(), predictions.max())) + 1
    samples = np.array(
        [
            _fast_quality(references[rows], predictions[rows], classes)
            for rows in generator.integers(0, len(references), (RESAMPLES, len(references)))
        ]
    )
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    return {
        name: {"value": value, "low": float(low[column]), "high": float(high[column])}
        for column, (name, value) in enumerate(values.items())
    }


def _fast_quality(references: Any, predictions: Any, classes: int) -> tuple[float, float]:
    """Accuracy and macro-F1 from the confusion matrix: a thousand resamples through scikit-learn take a minute."""
    confusion = np.bincount(references * classes + predictions, minlength=classes * classes).reshape(classes, classes)
    hits, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = (support + predicted) > 0
    f1 = 2 * hits[present] / (support + predicted)[present]
    return float(hits.sum() / len(references)), float(f1.mean())


def parameter_counts(network: PreTrainedModel) -> dict[str, int]:
    """`parameters` and `nonzero_parameters`; tied ones count once."""
    parameters = list(network.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "nonzero_parameters": sum(int(torch.count_nonzero(parameter)) for parameter in parameters),
    }
