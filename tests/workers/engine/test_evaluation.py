"""Figures against scikit-learn and against a plain bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.workers.engine.tiny import tiny_network
from workers.engine.evaluation import RESAMPLES, intervals, parameter_counts, quality


def found(rows: int, seed: int = 0) -> dict[str, list[int]]:
    chance = np.random.default_rng(seed)
    references = chance.integers(0, 3, rows)
    predictions = np.where(chance.random(rows) < 0.8, references, chance.integers(0, 4, rows))
    return {"references": references.tolist(), "predictions": predictions.tolist()}


def test_values_are_scikit_learns() -> None:
    rows = found(200)
    values = quality(rows)
    assert values["accuracy"] == accuracy_score(rows["references"], rows["predictions"])
    assert values["macro_f1"] == f1_score(rows["references"], rows["predictions"], average="macro", zero_division=0.0)


def test_intervals_are_those_of_a_plain_bootstrap_and_follow_the_seed() -> None:
    rows = found(150)
    measured = intervals(rows, seed=4)
    assert measured == intervals(rows, seed=4) != intervals(rows, seed=5)
    chance = np.random.default_rng(4)
    references, predictions = np.array(rows["references"]), np.array(rows["predictions"])
    samples = [
        f1_score(references[index], predictions[index], average="macro", zero_division=0.0)
        for index in chance.integers(0, 150, (RESAMPLES, 150))
    ]
    low, high = np.percentile(samples, (2.5, 97.5))
    assert measured["macro_f1"]["low"] == pytest.approx(low, abs=1e-9)
    assert measured["macro_f1"]["high"] == pytest.approx(high, abs=1e-9)
    assert low < measured["macro_f1"]["value"] < high


def test_parameters_count_tied_ones_once_and_zeros_not() -> None:
    network = tiny_network("bert")
    counts = parameter_counts(network)
    assert counts["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    classifier = network.get_submodule("classifier")
    classifier.weight.data.zero_()  # type: ignore[operator]
    network.register_module("twin", classifier)
    again = parameter_counts(network)
    assert again["parameters"] == counts["parameters"]
    assert counts["nonzero_parameters"] - again["nonzero_parameters"] == 3 * 32
