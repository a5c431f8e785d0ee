"""Rows of each task."""

from typing import Any, get_args

import pytest

from service.errors import Invalid
from service.intake.rows import KINDS, kind_of
from service.intake.rows.lines import Fault
from service.specs import TaskName

ANSWERS = {"text": ["me"], "answer_start": [6]}
QUESTION = {"question": "who?", "context": "it is me", "answers": ANSWERS}
CLASSES, ANSWERING, TAGGING = "text-classification", "question-answering", "token-classification"
EMBEDDING, TRANSLATION = "sentence-embedding", "translation"

GOOD: list[tuple[str, dict[str, Any]]] = [
    (CLASSES, {"text": "a", "labels": []}),
    (CLASSES, {"text": "a", "labels": [0, 3]}),
    (ANSWERING, QUESTION),
    (ANSWERING, {"id": "q1", **QUESTION}),
    (ANSWERING, {**QUESTION, "context": "🙂 me", "answers": {"text": ["me", "🙂"], "answer_start": [2, 0]}}),
    (TRANSLATION, {"source": "yes", "target": "oui"}),
    (TAGGING, {"tokens": ["a"], "tags": ["X"]}),
    (TAGGING, {"tokens": ["a", "b"], "tags": [0, 4]}),
    ("causal-lm", {"text": ""}),
    ("masked-lm", {"text": "a"}),
    (EMBEDDING, {"text": "a"}),
    (EMBEDDING, {"text": "a", "text_pair": "b"}),
    (EMBEDDING, {"text": "a", "text_pair": "b", "score": -0.5}),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    (CLASSES, {"text": "a", "label": 0, "labels": [0]}, "labels"),
    (CLASSES, {"text": "a", "labels": "x"}, "labels"),
    (CLASSES, {"text": "a", "labels": [0, 0]}, "labels"),
    (CLASSES, {"text": "a", "labels": [0, "x"]}, "labels"),
    (CLASSES, {"text": "a", "labels": [1.5]}, "labels"),
    (ANSWERING, {**QUESTION, "title": "t"}, ""),
    (ANSWERING, {**QUESTION, "question": None}, "question"),
    (ANSWERING, {**QUESTION, "id": "x" * 257}, "id"),
    (ANSWERING, {**QUESTION, "answers": ["me"]}, "answers"),
    (ANSWERING, {**QUESTION, "answers": {"text": ["me"]}}, "answers"),
    (ANSWERING, {**QUESTION, "answers": {"text": [], "answer_start": []}}, "answers/text"),
    (ANSWERING, {**QUESTION, "answers": {"text": ["me"], "answer_start": [6, 7]}}, "answers"),
    (ANSWERING, {**QUESTION, "answers": {"text": ["me"], "answer_start": [5]}}, "answers/answer_start"),
    (ANSWERING, {**QUESTION, "answers": {"text": ["me"], "answer_start": [-2]}}, "answers/answer_start"),
    (ANSWERING, {**QUESTION, "answers": {"text": ["me"], "answer_start": [True]}}, "answers/answer_start"),
    (ANSWERING, {**QUESTION, "answers": {"text": [""], "answer_start": [0]}}, "answers/answer_start"),
    (TRANSLATION, {"source": "yes"}, "target"),
    (TRANSLATION, {"source": ["yes"], "target": "oui"}, "source"),
    (TAGGING, {"tokens": [], "tags": []}, "tokens"),
    (TAGGING, {"tokens": ["a", ""], "tags": [0, 1]}, "tokens"),
    (TAGGING, {"tokens": ["a"], "tags": [0, 1]}, "tags"),
    (TAGGING, {"tokens": "a", "tags": [0]}, "tokens"),
    (TAGGING, {"tokens": ["a", "b"], "tags": [0, "X"]}, "tags"),
    ("causal-lm", {"text": "a", "label": 0}, ""),
    ("masked-lm", {}, "text"),
    (EMBEDDING, {"text": "a", "score": 0.5}, "text_pair"),
    (EMBEDDING, {"text": "a", "text_pair": "b", "score": True}, "score"),
    (EMBEDDING, {"text": "a", "text_pair": "b", "score": "0.5"}, "score"),
    (EMBEDDING, {"text": "a", "text_pair": "b", "score": 1e30}, "score"),
]


def test_every_task_has_its_kind() -> None:
    assert set(KINDS) == set(get_args(TaskName))
    with pytest.raises(Invalid) as caught:
        kind_of("cooking")
    assert (caught.value.code, caught.value.errors[0].pointer) == ("TASK_UNKNOWN", "/task")


@pytest.mark.parametrize(("task", "row"), GOOD)
def test_a_sound_row_stays_as_it_is(task: str, row: dict[str, Any]) -> None:
    assert kind_of(task).check(row) == row


@pytest.mark.parametrize(("task", "row", "column"), BAD)
def test_an_unsound_row_is_told_by_its_column(task: str, row: dict[str, Any], column: str) -> None:
    with pytest.raises(Fault) as caught:
        kind_of(task).check(row)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        (CLASSES, {"text": "a", "label": 0}, {"text": "a", "labels": [0]}),
        (CLASSES, {"text": "a", "label": 0}, {"text": "a", "label": "x"}),
        (CLASSES, {"text": "a", "labels": ["x"]}, {"text": "a", "labels": [0]}),
        (TAGGING, {"tokens": ["a"], "tags": [0]}, {"tokens": ["a"], "tags": ["X"]}),
        (EMBEDDING, {"text": "a"}, {"text": "a", "text_pair": "b"}),
        (EMBEDDING, {"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": "b", "score": 1}),
    ],
)
def test_rows_of_a_data_set_agree(task: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    kind = kind_of(task)
    kind.check(first)
    kind_of(task).check(second)
    with pytest.raises(Fault, match="every"):
        kind.check(second)


@pytest.mark.parametrize(
    ("task", "row", "summary"),
    [
        (
            CLASSES,
            {"text": "a", "labels": ["y", "x"]},
            {"names": ["x", "y"], "integers": None, "pairs": False, "multi_label": True},
        ),
        (TAGGING, {"tokens": ["a", "b"], "tags": ["X", "B"]}, {"names": ["B", "X"], "integers": None}),
        (TAGGING, {"tokens": ["a", "b"], "tags": [0, 4]}, {"names": None, "integers": 4}),
        (EMBEDDING, {"text": "a", "text_pair": "b", "score": 1}, {"pairs": True, "scores": True}),
        (ANSWERING, QUESTION, None),
        ("causal-lm", {"text": "a"}, None),
    ],
)
def test_what_later_checks_need_is_summed_up(task: str, row: dict[str, Any], summary: dict[str, Any] | None) -> None:
    kind = kind_of(task)
    kind.check(row)
    assert kind.summary() == summary
