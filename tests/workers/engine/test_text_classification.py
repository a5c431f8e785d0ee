"""Rows to batches: labels, pairs, padding, missing splits, what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.models import tiny_dataset, tiny_model
from workers.engine.failures import EngineError
from workers.engine.families import FAMILIES
from workers.engine.tasks.text_classification import TextClassification, labels_of_new_head


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


@pytest.fixture
def network(model: Path) -> PreTrainedModel:
    return FAMILIES["bert"].load(model)


def test_a_batch_is_what_the_tokenizer_says(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "the film was good", "label": 1},
        {"text": "a plot", "text_pair": "very bad", "label": "LABEL_0"},
    ]
    task = TextClassification(write(tmp_path / "data", test=rows), model, network, 16, 0)
    (batch,) = task.batches("test", 8)
    # [CLS] 2, [SEP] 3; words as they stand in the vocabulary of tests.models
    assert batch["input_ids"].tolist() == [[2, 13, 14, 15, 5, 3, 0], [2, 16, 19, 3, 17, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert batch["token_type_ids"].tolist() == [[0] * 7, [0, 0, 0, 0, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]


def test_networks_without_token_types_get_none(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "distilbert")
    task = TextClassification(tiny_dataset(tmp_path / "data"), model, FAMILIES["distilbert"].load(model), 16, 0)
    assert set(next(task.batches("test", 8))) == {"input_ids", "attention_mask", "labels"}


def test_an_epoch_holds_every_row_once_in_an_order_of_the_seed(
    model: Path, network: PreTrainedModel, tmp_path: Path
) -> None:
    task = TextClassification(tiny_dataset(tmp_path / "data", train=70), model, network, 16, 0)

    def epoch(seed: int) -> list[list[int]]:
        batches = task.batches("train", 8, torch.Generator().manual_seed(seed))
        return [row for batch in batches for row in batch["input_ids"].tolist()]

    def content(rows: list[list[int]]) -> list[list[int]]:
        return sorted([token for token in row if token] for row in rows)

    assert len(epoch(0)) == 70
    assert epoch(0) == epoch(0) != epoch(1)
    assert content(epoch(0)) == content(epoch(1))


def test_evaluation_covers_every_row(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(tiny_dataset(tmp_path / "data", test=67), model, network, 16, 0)
    found = task.evaluate(network, "test")
    assert len(found["predictions"]) == len(found["references"]) == 67
    assert set(found["references"]) == {0, 1}


def test_missing_splits_are_made_by_seed_and_told(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    data = write(
        tmp_path / "data", train=[{"text": f"the film {'good ' * (n % 9)}", "label": n % 2} for n in range(50)]
    )
    tasks = [TextClassification(data, model, network, 16, seed) for seed in (0, 0, 1)]
    assert [tasks[0].rows(split) for split in ("train", "validation", "test")] == [45, 5, 5]
    assert [code for code, _ in tasks[0].warnings] == ["TEST_SPLIT_MISSING"]
    held_out = [next(task.batches("validation", 5))["input_ids"].tolist() for task in tasks]
    assert held_out[0] == held_out[1] != held_out[2]


def test_what_was_cut_is_counted(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    texts = ["good " * count for count in (3, 6, 7, 30)]
    data = write(tmp_path / "data", test=[{"text": text, "label": 0} for text in texts])
    task = TextClassification(data, model, network, 8, 0)
    assert task.warnings == [("INPUT_TRUNCATED", "2 inputs are longer than max_length (8 tokens) and were cut.")]
    assert max(batch["input_ids"].shape[1] for batch in task.batches("test", 4)) == 8


def test_samples_come_from_train_else_from_calibration(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    train = TextClassification(tiny_dataset(tmp_path / "one", train=30), model, network, 16, 0)
    assert sum(len(batch["labels"]) for batch in train.sample(20, 8)) == train.sample_size(20) == 20
    assert sum(len(batch["labels"]) for batch in train.sample(99, 8)) == train.sample_size(99) == 30
    data = write(tmp_path / "two", calibration=[{"text": "good", "label": 1}] * 3)
    assert TextClassification(data, model, network, 16, 0).sample_size(99) == 3


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "DATA_UNUSABLE"),
        ('{"text": "a"}', "DATA_UNUSABLE"),
        ('{"text": 3, "label": 1}', "DATA_UNUSABLE"),
        ('{"text": "a", "label": 2}', "LABEL_UNKNOWN"),
        ('{"text": "a", "label": "other"}', "LABEL_UNKNOWN"),
    ],
)
def test_unusable_rows(model: Path, network: PreTrainedModel, tmp_path: Path, line: str, code: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a", "label": 1}\n' + line + "\n")
    with pytest.raises(EngineError) as caught:
        TextClassification(tmp_path / "data", model, network, 16, 0)
    assert (caught.value.code, caught.value.blame) == (code, "user")
    if code == "DATA_UNUSABLE":
        assert "line 2 of train" in caught.value.message


def test_a_split_that_is_needed_and_missing(model: Path, network: PreTrainedModel, tmp_path: Path) -> None:
    task = TextClassification(write(tmp_path / "data", test=[{"text": "a", "label": 1}]), model, network, 16, 0)
    with pytest.raises(EngineError, match="split train"):
        next(task.batches("train", 8))


def test_a_tokenizer_that_is_missing_or_of_another_model(model: Path, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data")
    with pytest.raises(EngineError, match="missing or cannot be read"):
        TextClassification(data, tmp_path / "nowhere", FAMILIES["bert"].load(model), 16, 0)
    network = FAMILIES["bert"].load(model)
    network.config.vocab_size = 10
    with pytest.raises(EngineError, match="no embedding"):
        TextClassification(data, model, network, 16, 0)


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
    assert labels_of_new_head(data, known) == new


@pytest.mark.parametrize("labels", [[1, 1], ["a", 1]])
def test_labels_that_nothing_can_be_learned_from(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(EngineError, match="at least two"):
        labels_of_new_head(write(tmp_path, train=[{"text": "a", "label": label} for label in labels]), [])
