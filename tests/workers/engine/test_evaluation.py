"""Figures and intervals against scikit-learn and a plain bootstrap; counts of parameters."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from tests.models import tiny_network
from workers.engine.evaluation import RESAMPLES, Summed, Unmeasured, intervals, macro_f1, parameter_counts
from workers.engine.tasks.text_classification import Classified, label_sets


def classes(rows: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """References and predictions, one class of which never occurs."""
    chance = np.random.default_rng(seed)
    references = chance.integers(0, 3, rows)
    return references, np.where(chance.random(rows) < 0.8, references, chance.integers(0, 4, rows))


def test_values_are_scikit_learns() -> None:
    references, predictions = classes(200)
    assert Classified(0.5, references, predictions).metrics() == pytest.approx(
        {
            "accuracy": accuracy_score(references, predictions),
            "macro_f1": f1_score(references, predictions, average="macro", zero_division=0.0),
        }
    )


def test_values_of_label_sets_leave_out_labels_that_nobody_named() -> None:
    chance = np.random.default_rng(1)
    references, predictions = chance.random((2, 50, 6)) < 0.3
    references[:, 4] = predictions[:, 4] = False
    predictions[:, 5] = False
    assert label_sets(0.5, references, predictions).metrics() == pytest.approx(
        {
            "accuracy": accuracy_score(references, predictions),
            "macro_f1": f1_score(references, predictions, average="macro", zero_division=np.nan),
        }
    )
    assert macro_f1(np.zeros(3), np.zeros(3), np.zeros(3)) == 0.0


def test_intervals_are_those_of_a_plain_bootstrap_and_follow_the_seed() -> None:
    references, predictions = classes(150)
    found = Classified(0.5, references, predictions)
    measured = intervals(found, seed=4)
    assert measured == intervals(found, seed=4) != intervals(found, seed=5)
    chance = np.random.default_rng(4)
    samples = [
        f1_score(references[index], predictions[index], average="macro", zero_division=0.0)
        for index in chance.integers(0, 150, (RESAMPLES, 150))
    ]
    low, high = np.percentile(samples, (2.5, 97.5))
    assert measured["macro_f1"]["low"] == pytest.approx(low, abs=1e-9)
    assert measured["macro_f1"]["high"] == pytest.approx(high, abs=1e-9)
    assert low < measured["macro_f1"]["value"] < high


def ratio(sums: NDArray[np.float64]) -> Sequence[float]:
    return (float(sums[0] / sums[1]),)


def test_sums_are_resampled_as_rows_are() -> None:
    chance = np.random.default_rng(2)
    statistics = np.stack([chance.random(80), chance.integers(1, 5, 80)], 1).astype(float)
    found = Summed(0.5, ["ratio"], statistics, ratio)
    assert found.metrics() == {"ratio": pytest.approx(statistics[:, 0].sum() / statistics[:, 1].sum())}
    rows = chance.integers(0, 80, 80)
    assert found.resampled(rows) == pytest.approx(ratio(statistics[rows].sum(0)))


def test_intervals_of_many_rows_take_seconds() -> None:
    statistics = np.random.default_rng(0).random((20_000, 28))
    start = time.process_time()
    intervals(Summed(0.5, ["ratio"], statistics, ratio), 0)
    assert time.process_time() - start < 10


def test_what_was_not_measured_has_no_interval() -> None:
    assert intervals(Unmeasured(0.5, 7), 0) == {}


def test_parameters_count_tied_ones_once_and_zeros_not() -> None:
    network = tiny_network("bert", "BertForSequenceClassification", num_labels=3)
    counts = parameter_counts(network)
    assert counts["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    classifier = network.get_submodule("classifier")
    classifier.weight.data.zero_()  # type: ignore[operator]
    network.register_module("twin", classifier)
    again = parameter_counts(network)
    assert again["parameters"] == counts["parameters"]
    assert counts["nonzero_parameters"] - again["nonzero_parameters"] == 3 * 32
