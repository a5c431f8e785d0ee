"""What can work but is not wise is warned of."""

from typing import Any

import pytest

from tests.service.resolve.orders import HIDDEN, NEURONS, TAYLOR, VOCABULARY, WEIGHTS, warned
from tests.service.samples import a_dataset, a_model, a_model_of

GRADUAL = {"kind": "gradual", "rounds": 4}
MAGNITUDE = {**NEURONS, "criterion": {"kind": "magnitude"}}
MOVEMENT = {**NEURONS, "criterion": {"kind": "movement"}}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"cuts": [TAYLOR]}, []),
        ({"cuts": [{**TAYLOR, "ratio": 0.995}]}, ["RATIO_NOT_REACHED"]),
        ({"cuts": [{**TAYLOR, "ratio": 0.99, "scope": "global"}], "exports": ["onnx"]}, ["RATIO_NOT_REACHED"]),
        ({"cuts": [{**TAYLOR, "ratio": 0.97}]}, []),
        ({"cuts": [MAGNITUDE]}, ["MAGNITUDE_WEAK"]),
        ({"cuts": [MAGNITUDE, {**MAGNITUDE, "ratio": 0.6}]}, ["MAGNITUDE_WEAK"]),
        ({"cuts": [NEURONS]}, ["RANDOM_CONTROL"]),
        ({"cuts": [WEIGHTS]}, ["SPARSITY_NOT_FASTER"]),
        ({"cuts": [VOCABULARY]}, ["VOCABULARY_NARROW"]),
        ({"cuts": [MOVEMENT]}, ["RECIPE_BY_DEFAULT"]),
        ({"cuts": [MOVEMENT], "finetuning": {"epochs": 1}}, []),
        ({"pruning": {"cuts": [TAYLOR], "schedule": GRADUAL}}, ["FINETUNING_MISSING"]),
        ({"pruning": {"cuts": [TAYLOR], "schedule": GRADUAL}, "finetuning": {"epochs": 2}}, ["ROUNDS_EXCEED_EPOCHS"]),
    ],
)
def test_weak_choices_are_warned_of(changes: dict[str, Any], codes: list[str]) -> None:
    assert warned(a_model(), a_dataset(), **changes) == codes


def test_a_cut_hidden_size_wants_finetuning() -> None:
    cut, dataset = {**HIDDEN, "criterion": {"kind": "taylor"}}, a_dataset(task="causal-lm", labels=None)
    assert warned(a_model_of("qwen2"), dataset, cuts=[cut]) == ["HIDDEN_SIZE_WEAK"]
    assert warned(a_model_of("qwen2"), dataset, cuts=[cut], finetuning={"epochs": 1}) == []


@pytest.mark.parametrize(
    ("goal", "codes"),
    [
        ({"metric": "bleu", "max_drop": 0.05}, ["GOAL_OF_A_PERCENT"]),
        ({"metric": "chrf", "min_value": 0.6}, ["GOAL_OF_A_PERCENT"]),
        ({"metric": "bleu", "max_drop": 2.0}, []),
        ({"metric": "bleu", "max_drop": 0}, []),
    ],
)
def test_a_goal_of_less_than_a_percent_is_warned_of(goal: dict[str, Any], codes: list[str]) -> None:
    dataset = a_dataset(task="translation", labels=None)
    assert warned(a_model_of("marian"), dataset, cuts=[TAYLOR], acceptance=[goal]) == codes
