"""Windows over contexts, spans, answers that are not there, figures against torchmetrics by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tests.workers.engine.tiny_tasks import bert_for, tokenizer_in, words, write
from workers.engine.evaluation import intervals
from workers.engine.failures import EngineError
from workers.engine.tasks import Settings
from workers.engine.tasks.question_answering import LONGEST_ANSWER, QuestionAnswering, best_spans
from workers.engine.tasks.task import forward

CONTEXT = "the film was a very good film and the actor was lovely and it was very fine"


def row(question: str, answer: str | None, context: str = CONTEXT) -> dict[str, Any]:
    texts = [] if answer is None else [answer]
    answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
    return {"question": question, "context": context, "answers": answers}


@pytest.fixture
def network() -> PreTrainedModel:
    return bert_for("QuestionAnswering")


def task_of(tmp_path: Path, network: PreTrainedModel, *rows: dict[str, Any], **settings: Any) -> QuestionAnswering:
    data = write(tmp_path / "data", train=list(rows), validation=list(rows), test=list(rows))
    return QuestionAnswering(data, tokenizer_in(tmp_path / "model"), network, Settings(**settings))


def test_a_context_that_fits_is_one_window(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, row("who was lovely ?", "the actor"), max_length=32)
    (batch,) = task.batches("test", 8)
    tokens = words(batch["input_ids"][0].tolist())
    assert tokens[:6] == ["[CLS]", "who", "was", "lovely", "?", "[SEP]"]
    assert (tokens[6], tokens[-2:]) == ("the", ["fine", "[SEP]"])
    assert batch["token_type_ids"][0].tolist() == [0] * 6 + [1] * (len(tokens) - 6)
    start, end = batch["start_positions"].item(), batch["end_positions"].item()
    assert tokens[int(start) : int(end) + 1] == ["the", "actor"]
    assert CONTEXT[batch["begins"][0, int(start)] : batch["ends"][0, int(end)]] == "the actor"


@pytest.mark.parametrize(("stride", "overlap"), [(None, 4), (2, 2), (30, 4)])
def test_long_contexts_slide_by(tmp_path: Path, network: PreTrainedModel, stride: int | None, overlap: int) -> None:
    task = task_of(tmp_path, network, row("who was lovely ?", "the actor"), max_length=15, stride=stride)
    (batch,) = task.batches("test", 64)
    room = 15 - len(["[CLS]", "who", "was", "lovely", "?", "[SEP]", "[SEP]"])
    windows = []
    for ids, begins, mask in zip(batch["input_ids"], batch["begins"], batch["attention_mask"], strict=True):
        assert words(ids.tolist())[:6] == ["[CLS]", "who", "was", "lovely", "?", "[SEP]"]
        assert words(ids[mask.bool()].tolist())[-1] == "[SEP]"
        windows.append([word for word, begin in zip(words(ids.tolist()), begins.tolist(), strict=True) if begin >= 0])
    windows.sort(key=lambda window: -len(window))
    assert task.rows("test") == len(windows) > 1
    assert {len(window) for window in windows[:-1]} == {room}
    spans = sorted((int(row[row >= 0].min()), int(row.max())) for row in batch["begins"])
    text = [CONTEXT[first : last + 1].count(" ") + 1 for first, last in spans]
    assert CONTEXT.count(" ") + 1 == sum(text) - overlap * (len(spans) - 1)


def test_windows_without_the_whole_answer_point_at_the_first_token(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, row("who ?", "the actor"), row("where ?", None), max_length=12)
    (batch,) = task.batches("test", 64)
    found = []
    for window, question in enumerate(batch["question"].tolist()):
        first, last = int(batch["start_positions"][window]), int(batch["end_positions"][window])
        text = words(batch["input_ids"][window, first : last + 1].tolist())
        assert text in (["[CLS]"], ["the", "actor"])
        assert question % 2 == 0 or text == ["[CLS]"]
        found.append(text)
    assert ["the", "actor"] in found and found.count(["[CLS]"]) > len(found) / 2


def test_long_questions_are_cut_to_half_a_window_and_told(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, row("who " * 30, "good"), max_length=16)
    assert [code for code, _ in task.warnings] == ["INPUT_TRUNCATED"]
    (batch,) = task.batches("test", 64)
    assert batch["input_ids"].shape[1] == 16
    assert {words(ids.tolist()).count("who") for ids in batch["input_ids"]} == {5}


def test_the_loss_is_the_mean_of_both_ends_and_padding_never_counts(tmp_path: Path, network: PreTrainedModel) -> None:
    rows = row("who was lovely ?", "the actor"), row("who ?", "good", "a good plot")
    task = task_of(tmp_path, network, *rows, max_length=32)
    (batch,) = task.batches("test", 8)
    with torch.no_grad():
        logits, found = task.logits(network, batch), forward(network, batch)
        teacher = task.logits(bert_for("QuestionAnswering", seed=1), batch)
    padded = batch["attention_mask"].repeat(2, 1) == 0
    assert logits.shape == padded.shape == (4, batch["input_ids"].shape[1])
    assert bool(padded.any()) and float(logits.softmax(-1)[padded].sum()) == 0.0
    expected = []
    for window in range(2):
        length = int(batch["attention_mask"][window].sum())
        for scores, target in ((found.start_logits, "start_positions"), (found.end_logits, "end_positions")):
            expected.append(functional.cross_entropy(scores[window, :length], batch[target][window]))
    assert float(task.loss_of(logits, batch)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert float(task.divergence(logits, logits, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert 0 < float(task.divergence(logits, teacher, 2.0)) < 1000


class Oracle(nn.Module):
    """Points at the given words wherever a window holds them, and elsewhere at its first token; never far off."""

    device = torch.device("cpu")

    def __init__(self, sure: float, *answers: str) -> None:
        super().__init__()
        self.sure, self.answers = sure, [answer.split() for answer in answers]

    def forward(self, input_ids: Tensor, **_: Tensor) -> SimpleNamespace:
        starts, ends = torch.zeros(2, *input_ids.shape)
        starts[:, 0] = ends[:, 0] = 1.0
        for window, ids in enumerate(input_ids.tolist()):
            tokens = words(ids)
            context = tokens.index("[SEP]")
            for answer in self.answers:
                for at in range(context, len(tokens)):
                    if tokens[at : at + len(answer)] == answer:
                        starts[window, at] = ends[window, at + len(answer) - 1] = self.sure
        return SimpleNamespace(start_logits=starts, end_logits=ends)


def test_answers_are_found_over_all_windows_and_judged(tmp_path: Path, network: PreTrainedModel) -> None:
    scene = "it was fine and it was a very good scene and it was very fine and the plot was great"
    rows = [row("who ?", "the actor"), row("where ?", "a very good scene", scene), row("where ?", "plot", "a plot")]
    task = task_of(tmp_path, network, *rows, max_length=14)
    assert task.rows("test") > 3
    oracle: Any = Oracle(5.0, "actor", "good scene")
    found = task.evaluate(oracle, "test")
    # Articles do not count, so that `actor` is exact; of `very good scene` two of three words were found, all true.
    assert found.rows == 3
    assert found.metrics() == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 0.8 + 0) / 3}, rel=1e-5)
    measured = intervals(found, 0)
    assert (measured["f1"]["low"], measured["f1"]["high"]) == pytest.approx((0, 100), rel=1e-5)


def test_no_answer_is_an_answer_where_the_data_has_such(tmp_path: Path, network: PreTrainedModel) -> None:
    rows = row("who was lovely ?", "the actor"), row("where ?", None, "a plot")
    sure: Any = Oracle(5.0, "the actor")
    unsure: Any = Oracle(0.5, "the actor")
    task = task_of(tmp_path, network, *rows, max_length=32)
    assert task.evaluate(sure, "test").metrics() == {"exact_match": 100.0, "f1": 100.0}
    assert task.evaluate(unsure, "test").metrics() == {"exact_match": 50.0, "f1": 50.0}
    answered = task_of(tmp_path / "answered", network, rows[0], max_length=32)
    assert answered.evaluate(unsure, "test").metrics() == {"exact_match": 100.0, "f1": 100.0}


def test_the_best_span_is_that_of_all_pairs() -> None:
    starts, ends = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    scores, first, last = best_spans(starts, ends)
    for line in range(6):
        ranges = ((a, range(a, min(50, a + LONGEST_ANSWER))) for a in range(50))
        pairs = {(a, b): float(starts[line, a] + ends[line, b]) for a, span in ranges for b in span}
        best = max(pairs, key=lambda pair: pairs[pair])
        assert (int(first[line]), int(last[line])) == best
        assert float(scores[line]) == pytest.approx(pairs[best])


def test_a_broken_network_answers_nothing(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, row("who ?", "the actor"), max_length=32)
    with torch.no_grad():
        network.get_submodule("qa_outputs").weight.fill_(float("nan"))  # type: ignore[operator]
    assert task.evaluate(network, "test").metrics() == {"exact_match": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    "change",
    [
        {"question": 3},
        {"context": None},
        {"answers": ["good"]},
        {"answers": {"text": ["good"], "answer_start": [0]}},
        {"answers": {"text": ["good"], "answer_start": []}},
        {"answers": {"text": ["good"], "answer_start": [-1]}},
    ],
)
def test_unusable_rows(tmp_path: Path, network: PreTrainedModel, change: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="line 1 of test is no row of question-answering") as caught:
        task_of(tmp_path, network, row("who ?", "good") | change, max_length=32)
    assert caught.value.code == "DATA_UNUSABLE"
