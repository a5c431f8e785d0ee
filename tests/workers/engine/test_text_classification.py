"""Rows to batches: labels, sets of labels, pairs, padding, missing splits, what cannot be used; figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional
from transformers import PreTrainedModel

from tests.models import tiny_dataset, tiny_network
from tests.workers.engine.tiny_tasks import IDS, bert_for, tokenizer_in, words, write
from workers.engine.failures import EngineError
from workers.engine.tasks import Settings
from workers.engine.tasks.task import forward
from workers.engine.tasks.text_classification import TextClassification

SETTINGS = Settings(16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tokenizer_in(tmp_path / "model")


@pytest.fixture
def network() -> PreTrainedModel:
    return bert_for("SequenceClassification", num_labels=2)


@pytest.fixture
def topics() -> PreTrainedModel:
    """A network of three labels."""
    return bert_for("SequenceClassification", id2label={0: "art", 1: "law", 2: "war"}, label2id={})


def test_a_batch_is_what_the_tokenizer_says(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "the film was good", "label": 1},
        {"text": "a plot", "text_pair": "very bad", "label": "LABEL_0"},
    ]
    task = TextClassification(write(tmp_path / "data", test=rows), model, network, SETTINGS)
    (batch,) = task.batches("test", 8)
    assert words(batch["input_ids"][0].tolist()) == ["[CLS]", "the", "film", "was", "good", "[SEP]", "[PAD]"]
    assert words(batch["input_ids"][1].tolist()) == ["[CLS]", "a", "plot", "[SEP]", "very", "bad", "[SEP]"]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert batch["token_type_ids"].tolist() == [[0] * 7, [0, 0, 0, 0, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert task.size(batch) == 2


def test_networks_without_token_types_get_none(model: Path, tmp_path: Path) -> None:
    network = tiny_network("distilbert", "DistilBertForSequenceClassification")
    task = TextClassification(tiny_dataset(tmp_path / "data"), model, network, SETTINGS)
    assert set(next(task.batches("test", 8))) == {"input_ids", "attention_mask", "labels"}


def test_an_epoch_holds_every_row_once_in_an_order_of_the_seed(
    model: Path, network: PreTrainedModel, tmp_path: Path
) -> None:
    task = TextClassification(tiny_dataset(tmp_path / "data", train=70), model, network, SETTINGS)

    def epoch(seed: int) -> list[list[int]]:
        batches = task.batches("train", 8, torch.Generator().manual_seed(seed))
        return [row for batch in batches for row in batch["input_ids"].tolist()]

    def content(rows: list[list[int]]) -> list[list[int]]:
        return sorted([token for token in row if token] for row in rows)

    assert len(epoch(0)) == 70
    assert epoch(0) == epoch(0) != epoch(1)
    assert content(epoch(0)) == content(epoch(1))


def test_figures_are_those_of_scikit_learn_on_every_row(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(tiny_dataset(tmp_path / "data", test=67), model, network, SETTINGS)
    found = task.evaluate(network.train(), "test")
    batches = list(task.batches("test", 67))
    with torch.no_grad():
        logits = torch.cat([forward(network, batch).logits for batch in batches])
    labels, guesses = torch.cat([batch["labels"] for batch in batches]), logits.argmax(-1)
    assert (found.rows, network.training) == (67, False)
    assert found.metrics() == pytest.approx(
        {"accuracy": accuracy_score(labels, guesses), "macro_f1": f1_score(labels, guesses, average="macro")}
    )
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


def test_missing_splits_are_made_by_seed_and_told(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    data = write(
        tmp_path / "data", train=[{"text": f"the film {'good ' * (n % 9)}", "label": n % 2} for n in range(50)]
    )
    tasks = [TextClassification(data, model, network, Settings(16, seed)) for seed in (0, 0, 1)]
    assert [tasks[0].rows(split) for split in ("train", "validation", "test")] == [45, 5, 5]
    assert [code for code, _ in tasks[0].warnings] == ["TEST_SPLIT_MISSING"]
    held_out = [next(task.batches("validation", 5))["input_ids"].tolist() for task in tasks]
    assert held_out[0] == held_out[1] != held_out[2]
    lone = write(tmp_path / "lone", train=[{"text": "good", "label": 1}])
    with pytest.raises(EngineError, match="at least two rows"):
        TextClassification(lone, model, network, SETTINGS)


def test_what_was_cut_is_counted(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    texts = ["good " * count for count in (3, 6, 7, 30)]
    data = write(tmp_path / "data", test=[{"text": text, "label": 0} for text in texts])
    task = TextClassification(data, model, network, Settings(8))
    assert task.warnings == [("INPUT_TRUNCATED", "2 inputs are longer than max_length (8 tokens) and were cut.")]
    assert max(batch["input_ids"].shape[1] for batch in task.batches("test", 4)) == 8


def test_samples_come_from_train_else_from_calibration(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    train = TextClassification(tiny_dataset(tmp_path / "one", train=30), model, network, SETTINGS)
    assert sum(len(batch["labels"]) for batch in train.sample(20, 8)) == train.sample_size(20) == 20
    assert sum(len(batch["labels"]) for batch in train.sample(99, 8)) == train.sample_size(99) == 30
    data = write(tmp_path / "two", calibration=[{"text": "good", "label": 1}] * 3)
    assert TextClassification(data, model, network, SETTINGS).sample_size(99) == 3


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "DATA_UNUSABLE"),
        ("[]", "DATA_UNUSABLE"),
        ('{"text": "a"}', "DATA_UNUSABLE"),
        ('{"text": 3, "label": 1}', "DATA_UNUSABLE"),
        ('{"text": "a", "text_pair": 3, "label": 1}', "DATA_UNUSABLE"),
        ('{"text": "a", "label": 1, "labels": [1]}', "DATA_UNUSABLE"),
        ('{"text": "a", "labels": "b"}', "DATA_UNUSABLE"),
        ('{"text": "a", "label": 2}', "LABEL_UNKNOWN"),
        ('{"text": "a", "label": "other"}', "LABEL_UNKNOWN"),
    ],
)
def test_unusable_rows(model: Path, network: PreTrainedModel, tmp_path: Path, line: str, code: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a", "label": 1}\n' + line + "\n")
    with pytest.raises(EngineError) as caught:
        TextClassification(tmp_path / "data", model, network, SETTINGS)
    assert (caught.value.code, caught.value.blame) == (code, "user")
    if code == "DATA_UNUSABLE":
        assert "line 2 of train" in caught.value.message


def test_a_split_that_is_needed_and_missing(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(write(tmp_path / "data", test=[{"text": "a", "label": 1}]), model, network, SETTINGS)
    with pytest.raises(EngineError, match="split train"):
        next(task.batches("train", 8))


def test_a_tokenizer_that_is_missing_or_of_another_model(model: Path, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data")
    network = bert_for("SequenceClassification", num_labels=2, vocab_size=IDS["a"])
    with pytest.raises(EngineError, match="missing or cannot be read"):
        TextClassification(data, tmp_path / "nowhere", network, SETTINGS)
    with pytest.raises(EngineError, match="no embedding"):
        TextClassification(data, model, network, SETTINGS)


@pytest.mark.parametrize(
    ("labels", "known", "new"),
    [
        ([0, 1, 2], [], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["b", "a"], [], ["a", "b"]),
        ([0, 1], ["negative", "positive"], None),
        (["positive", "negative"], ["negative", "positive"], None),
        ([0, 2], ["negative", "positive"], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["positive", "neutral"], ["negative", "positive"], ["neutral", "positive"]),
    ],
)
def test_labels_of_a_new_head(tmp_path: Path, labels: list[Any], known: list[str], new: list[str] | None) -> None:
    data = write(tmp_path, train=[{"text": "a", "label": label} for label in labels])
    assert TextClassification.labels_of_new_head(data, known) == new
    assert TextClassification.problem_type(data) == "single_label_classification"


@pytest.mark.parametrize("labels", [[1, 1], ["a", 1]])
def test_labels_that_nothing_can_be_learned_from(tmp_path: Path, labels: list[Any]) -> None:
    data = write(tmp_path, train=[{"text": "a", "label": label} for label in labels])
    with pytest.raises(EngineError, match="at least two"):
        TextClassification.labels_of_new_head(data, [])


# Sets of labels


def several(tmp_path: Path) -> Path:
    sets: list[list[int | str]] = [["art"], ["war", "law"], [], [2, 0, 1], ["law"], [], ["war"]]
    rows = [{"text": f"the film {'good ' * n}", "labels": labels} for n, labels in enumerate(sets)]
    return write(tmp_path / "data", train=rows, validation=rows, test=rows)


def test_sets_of_labels_are_ones_and_zeros(model: Path, topics: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(several(tmp_path), model, topics, SETTINGS)
    (batch,) = task.batches("test", 8)
    assert batch["labels"].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert task.logits(topics, batch).shape == (7, 3)


def test_figures_of_sets_are_those_of_scikit_learn(model: Path, topics: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(several(tmp_path), model, topics, SETTINGS)
    (batch,) = task.batches("test", 8)
    with torch.no_grad():
        scores = forward(topics, batch).logits
    labels, guesses = batch["labels"].numpy(), (scores.sigmoid() > 0.5).numpy()
    found = task.evaluate(topics, "test")
    assert found.metrics() == pytest.approx(
        {"accuracy": accuracy_score(labels, guesses), "macro_f1": f1_score(labels, guesses, average="macro")}
    )
    rows = torch.arange(7).numpy()
    assert found.resampled(rows) == pytest.approx(tuple(found.metrics().values()))
    expected = functional.binary_cross_entropy(scores.sigmoid(), batch["labels"])
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


def test_the_divergence_of_sets_is_that_of_coins(model: Path, topics: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(several(tmp_path), model, topics, SETTINGS)
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = 9 * kl_divergence(Bernoulli(logits=teacher / 3), Bernoulli(logits=student / 3)).mean()
    assert float(task.divergence(student, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(task.divergence(student, student, 3.0)) == pytest.approx(0.0, abs=1e-7)


def test_what_the_first_row_has_all_must_have(model: Path, topics: PreTrainedModel, tmp_path: Path) -> None:
    assert TextClassification.problem_type(several(tmp_path)) == "multi_label_classification"
    fresh = write(tmp_path / "fresh", train=[{"text": "", "labels": ["b", "a"]}, {"text": "", "labels": []}])
    assert TextClassification.labels_of_new_head(fresh, []) == ["a", "b"]
    rows: list[dict[str, Any]] = [{"text": "a", "labels": [1]}, {"text": "a", "label": 1}]
    with pytest.raises(EngineError, match="either label or labels"):
        TextClassification(write(tmp_path / "mixed", test=rows), model, topics, SETTINGS)
