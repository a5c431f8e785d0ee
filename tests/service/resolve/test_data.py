"""The task must fit the model, and the data set both."""

from typing import Any

import pytest

from service.catalog import FAMILIES
from service.specs import QUALITY_METRICS
from tests.service.resolve.orders import (
    BASELINE,
    HEADS,
    NEURONS,
    SPLIT,
    TAYLOR,
    VOCABULARY,
    WEIGHTS,
    faults,
    refused,
    resolved,
)
from tests.service.samples import a_dataset, a_model, a_model_of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", QUALITY_METRICS)
def test_a_family_does_its_tasks_and_no_other(family: str, task: str) -> None:
    model = a_model_of(family, task=task)
    if task in FAMILIES[family].tasks:
        assert resolved(model, task=task, cuts=[WEIGHTS])["task"] == task
    else:
        error = refused(model, task=task, cuts=[WEIGHTS])
        assert (error.code, error.errors[0].pointer) == ("TASK_MISMATCH", "/task")
        assert FAMILIES[family].tasks[0] in error.detail


@pytest.mark.parametrize("had", [None, "masked-lm", "text-classification"])
def test_an_encoder_needs_no_head_for_embeddings(had: str | None) -> None:
    model = a_model(task=had, facts={"has_head": False, "labels": None})
    assert resolved(model, task="sentence-embedding", cuts=[WEIGHTS])["baseline"] is None


@pytest.mark.parametrize("pairs", [True, False])
def test_texts_without_partners_are_nothing_to_learn_from_before_a_cut(pairs: bool) -> None:
    dataset = a_dataset(task="sentence-embedding", labels={"pairs": pairs, "scores": False})
    order: dict[str, Any] = {"task": "sentence-embedding", "cuts": [NEURONS], "finetuning": {"epochs": 1}}
    assert resolved(a_model(), dataset, **order)
    if pairs:
        assert resolved(a_model(), dataset, **order, baseline=BASELINE)
    else:
        assert faults(a_model(), dataset, **order, baseline=BASELINE) == ("BASELINE_NOT_USED", ["/baseline"])


@pytest.mark.parametrize(
    ("had", "wanted", "code"),
    [
        (None, "question-answering", "BASELINE_REQUIRED"),
        ("masked-lm", "token-classification", "BASELINE_REQUIRED"),
        ("question-answering", "token-classification", "TASK_MISMATCH"),
    ],
)
def test_a_new_head_is_trained_by_the_baseline(had: str | None, wanted: str, code: str) -> None:
    model, dataset = a_model(task=had, facts={"labels": None}), a_dataset(task=wanted, labels=None)
    error = refused(model, dataset, task=wanted)
    assert error.code == code
    assert "`baseline`" in error.detail
    assert resolved(model, dataset, task=wanted, baseline=BASELINE)["baseline"]["epochs"] == 1


MOVEMENT = {**NEURONS, "criterion": {"kind": "movement"}}
PENALTY = {**NEURONS, "criterion": {"kind": "regularization"}}
TARGET = {"target": {"metric": "flops", "ratio": 0.5}}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"cuts": [MOVEMENT]}, "/pruning/cuts/0/criterion"),
        ({"cuts": [PENALTY]}, "/pruning/cuts/0/criterion"),
        ({"cuts": [{**NEURONS, "repair": True}]}, "/pruning/cuts/0/repair"),
        ({"pruning": TARGET}, "/pruning/target"),
        ({"cuts": [WEIGHTS, VOCABULARY]}, "/pruning/cuts/1"),
    ],
)
def test_what_reads_rows_is_named_where_there_are_none(changes: dict[str, Any], pointer: str) -> None:
    error = refused(a_model(), **changes)
    assert (error.code, error.errors[0].pointer) == ("DATASET_REQUIRED", "/dataset_id")
    assert error.detail.endswith(f"{pointer}.")


@pytest.mark.parametrize("cut", [MOVEMENT, PENALTY])
def test_criteria_that_train_need_the_split_train(cut: dict[str, Any]) -> None:
    dataset = a_dataset(splits={"calibration": SPLIT, "test": SPLIT})
    assert faults(a_model(), dataset, cuts=[cut]) == ("SPLIT_MISSING", ["/dataset_id"])
    assert resolved(a_model(), a_dataset(), cuts=[cut])


@pytest.mark.parametrize("changes", [{"pruning": TARGET}, {"cuts": [{**NEURONS, "repair": True}]}])
def test_what_scores_is_content_with_calibration(changes: dict[str, Any]) -> None:
    assert resolved(a_model(), a_dataset(splits={"calibration": SPLIT}), **changes)
    assert faults(a_model(), a_dataset(splits={"test": SPLIT}), **changes) == ("SPLIT_MISSING", ["/dataset_id"])


def test_the_vocabulary_needs_a_tokenizer() -> None:
    model = a_model(facts={"has_tokenizer": False})
    assert faults(model, a_dataset(), cuts=[VOCABULARY]) == ("TOKENIZER_REQUIRED", ["/model_id"])


@pytest.mark.parametrize(
    ("cut", "splits", "wanted"),
    [
        (HEADS, {"train", "test"}, True),
        (TAYLOR, {"calibration"}, True),
        (NEURONS, {"test"}, False),
        (NEURONS, set(), False),
        ({**TAYLOR, "repair": False}, {"train"}, False),
        (WEIGHTS, {"train"}, False),
    ],
)
def test_what_remains_is_corrected_where_there_are_rows(cut: dict[str, Any], splits: set[str], wanted: bool) -> None:
    dataset = a_dataset(splits=dict.fromkeys(splits, SPLIT)) if splits else None
    made = resolved(a_model(), dataset, cuts=[cut], exports=["onnx"])
    assert made["pruning"]["cuts"][0]["repair"] is wanted


def test_tags_are_labels_of_the_head() -> None:
    model = a_model(task="token-classification", facts={"labels": ["NOUN", "VERB"]})
    tags = {"names": ["NOUN", "VERB"], "integers": None}
    assert resolved(model, a_dataset(task=model.task, labels=tags))
    other = a_dataset(task=model.task, labels={**tags, "names": ["ADJ"]})
    assert faults(model, other) == ("LABELS_MISMATCH", ["/dataset_id"])


@pytest.mark.parametrize("several", [True, False])
def test_one_label_or_several_must_fit_the_head(several: bool) -> None:
    labels = {"names": None, "integers": 1, "pairs": False, "multi_label": several}
    right, wrong = a_model(facts={"multi_label": several}), a_model(facts={"multi_label": not several})
    assert resolved(right, a_dataset(labels=labels))
    assert faults(wrong, a_dataset(labels=labels)) == ("LABELS_MISMATCH", ["/dataset_id"])
    assert resolved(wrong, a_dataset(labels=labels), baseline=BASELINE)
