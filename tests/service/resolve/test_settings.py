"""Numbers must fit the model and the task."""

import pytest

from tests.service.resolve.orders import WEIGHTS, faults, resolved, warned
from tests.service.samples import a_dataset, a_model, a_model_of

QA = a_model(task="question-answering", facts={"labels": None})


def test_windows_overlap_by_half_unless_told() -> None:
    assert resolved(QA)["stride"] == 64
    assert resolved(QA, max_length=100, stride=99)["stride"] == 99
    assert resolved(a_model())["stride"] is None


def test_windows_must_move_on() -> None:
    assert faults(QA, stride=128) == ("TOO_LONG", ["/stride"])
    assert faults(QA, max_length=50, stride=50) == ("TOO_LONG", ["/stride"])


def test_only_question_answering_slides_windows() -> None:
    assert faults(a_model(), stride=10) == ("STRIDE_NOT_USED", ["/stride"])


def test_a_beam_search_is_for_translation() -> None:
    assert warned(a_model_of("marian"), beams=2, cuts=[WEIGHTS]) == ["SPARSITY_NOT_FASTER"]
    assert warned(a_model(), beams=2, cuts=[WEIGHTS]) == ["SPARSITY_NOT_FASTER", "BEAMS_NOT_USED"]
    assert warned(a_model(), beams=4, cuts=[WEIGHTS]) == ["SPARSITY_NOT_FASTER"]


@pytest.mark.parametrize(
    ("family", "metric"), [("bert", "bleu"), ("marian", "accuracy"), ("gpt2", "f1"), ("t5", "perplexity")]
)
def test_a_task_measures_its_own_metrics(family: str, metric: str) -> None:
    model = a_model_of(family)
    dataset = a_dataset(task=model.task, labels=None)
    code, pointers = faults(model, dataset, acceptance=[{"metric": metric, "min_value": 0.5}])
    assert (code, pointers) == ("METRIC_NOT_MEASURED", ["/acceptance/0/metric"])


def test_spearman_needs_scores() -> None:
    model, goal = a_model(task=None), [{"metric": "spearman", "max_drop": 0.1}]
    labels = {"pairs": True, "scores": True}
    task = "sentence-embedding"
    assert resolved(model, a_dataset(task=task, labels=labels), task=task, acceptance=goal)
    without = a_dataset(task=task, labels={**labels, "scores": False})
    assert faults(model, without, task=task, acceptance=goal) == ("METRIC_NOT_MEASURED", ["/acceptance/0/metric"])
    assert resolved(model, without, task=task, acceptance=[{"metric": "agreement", "min_value": 0.9}])
