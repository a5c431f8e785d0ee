"""Tags on first sub-tokens, cut rows, figures against seqeval."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.workers.engine.tiny_tasks import bert_for, tokenizer_in, words, write
from workers.engine.evaluation import intervals
from workers.engine.failures import EngineError
from workers.engine.tasks import Settings
from workers.engine.tasks.row_task import IGNORED
from workers.engine.tasks.token_classification import TokenClassification

ENTITIES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SPEECH = ["NOUN", "VERB", ".", "B"]
WORDS_USED = ["the", "film", "was", "good", "unkinds", "actor", ".", "unkind"]


def network_of(labels: list[str], **changes: Any) -> PreTrainedModel:
    return bert_for("TokenClassification", id2label=dict(enumerate(labels)), label2id={}, **changes)


def rows_of(labels: list[str], count: int) -> list[dict[str, Any]]:
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, 9, count)
    return [
        {"tokens": chance.choice(WORDS_USED, size).tolist(), "tags": chance.choice(labels, size).tolist()}
        for size in lengths
    ]


def test_the_first_part_of_a_word_has_its_tag(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "unkinds", "was", "unkind", "."], "tags": ["O", "B-PER", "O", "B-LOC", 0]}]
    task = TokenClassification(
        write(tmp_path / "data", test=rows), tokenizer_in(tmp_path), network_of(ENTITIES), Settings(32)
    )
    (batch,) = task.batches("test", 8)
    labels = batch["labels"][0].tolist()
    tagged = [word for word, label in zip(words(batch["input_ids"][0].tolist()), labels, strict=True) if label >= 0]
    assert tagged == ["the", "un", "was", "un", "."]
    assert [label for label in labels if label != IGNORED] == [0, 1, 0, 3, 0]
    assert task.logits(network_of(ENTITIES), batch).shape == (5, 5)


def test_tokens_may_begin_at_the_space_before_a_word(tmp_path: Path) -> None:
    pieces = ["<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġg", "Ġgo"]
    backend = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [("Ġ", "g"), ("Ġg", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # offsets with the space, as they come
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    rows = [{"tokens": ["go", "go", "é", "a"], "tags": [1, 2, 3, 4]}]
    network = network_of(ENTITIES, vocab_size=300)
    task = TokenClassification(write(tmp_path / "data", test=rows), tmp_path, network, Settings(32))
    (batch,) = task.batches("test", 8)
    tokens = [pieces[token] for token in batch["input_ids"][0].tolist()]
    assert tokens == ["g", "o", "Ġgo", "Ġ", "Ã", "©", "Ġ", "a"]
    assert batch["labels"][0].tolist() == [1, IGNORED, 2, IGNORED, 3, IGNORED, IGNORED, 4]


def test_words_that_were_cut_off_count_nowhere_and_are_told(tmp_path: Path) -> None:
    rows = [{"tokens": ["good"] * 20, "tags": ["O"] * 20}, {"tokens": ["good"], "tags": ["O"]}]
    network = network_of(ENTITIES)
    task = TokenClassification(
        write(tmp_path / "data", test=rows), tokenizer_in(tmp_path / "model"), network, Settings(8)
    )
    assert [code for code, _ in task.warnings] == ["INPUT_TRUNCATED"]
    (batch,) = task.batches("test", 8)
    assert int((batch["labels"] != IGNORED).sum()) == (8 - 2) + 1


@pytest.mark.parametrize("labels", [ENTITIES, SPEECH])
def test_figures_are_seqevals_for_entities_and_accuracy_for_other_tags(tmp_path: Path, labels: list[str]) -> None:
    network = network_of(labels)
    data = write(tmp_path / "data", test=rows_of(labels, 150))
    task = TokenClassification(data, tokenizer_in(tmp_path / "model"), network, Settings(64))
    found = task.evaluate(network, "test")
    wanted, guesses, same, total = [], [], 0, 0
    for batch in task.batches("test", 32):
        with torch.no_grad():
            scores = network(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
        for line, guess in zip(batch["labels"], scores.argmax(-1), strict=True):
            kept = line != IGNORED
            same, total = same + int((line == guess)[kept].sum()), total + int(kept.sum())
            wanted.append([labels[index] for index in line[kept].tolist()])
            guesses.append([labels[index] for index in guess[kept].tolist()])
    expected = f1_score(wanted, guesses, average="micro") if labels is ENTITIES else same / total
    assert 0 < same < total
    assert found.metrics() == pytest.approx({"f1": expected, "accuracy": same / total})
    measured = intervals(found, 0)
    assert all(m["low"] < m["value"] < m["high"] for m in measured.values())
    assert found.rows == 150


def test_labels_of_a_new_head(tmp_path: Path) -> None:
    data = write(tmp_path, train=rows_of(ENTITIES, 60))
    assert TokenClassification.labels_of_new_head(data, []) == sorted(ENTITIES)
    assert TokenClassification.labels_of_new_head(data, ENTITIES) is None


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["a"], "tags": []},
        {"tokens": [], "tags": []},
        {"tokens": "a", "tags": ["O"]},
        {"tokens": [3], "tags": ["O"]},
        {"tokens": ["a"], "tags": [None]},
        {"tokens": ["a"]},
    ],
)
def test_unusable_rows(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(EngineError, match="line 1 of test is no row of token-classification"):
        TokenClassification(tmp_path / "data", tokenizer_in(tmp_path), network_of(ENTITIES), Settings(8))
