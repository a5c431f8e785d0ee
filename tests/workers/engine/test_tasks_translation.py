"""Shifted targets, beam search, BLEU and chrF against sacreBLEU's own."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch.nn import functional
from transformers import MarianTokenizer, PreTrainedModel

from tests.models import FILLER, GOOD, tiny_network
from tests.workers.engine.tiny_tasks import tokenizer_in, words, write
from workers.engine.evaluation import intervals
from workers.engine.failures import EngineError
from workers.engine.tasks import Settings
from workers.engine.tasks.row_task import IGNORED
from workers.engine.tasks.translation import Translation, bleu_and_chrf, sentence_statistics

NETWORKS = {
    "bart": "BartForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "marian": "MarianMTModel",
}


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A language whose sentences are the source's backwards."""
    chance = random.Random(seed)
    made = [chance.choices((*FILLER, *GOOD), k=chance.randrange(2, 9)) for _ in range(count)]
    return [{"source": " ".join(text), "target": " ".join(reversed(text))} for text in made]


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_network(request.param, NETWORKS[request.param])


def task_of(tmp_path: Path, network: PreTrainedModel, count: int = 12, **settings: Any) -> Translation:
    data = write(tmp_path / "data", train=rows_of(30, 1), validation=rows_of(9, 2), test=rows_of(count))
    return Translation(data, tokenizer_in(tmp_path / "model"), network, Settings(16, **settings))


def test_the_decoder_reads_the_target_one_step_late(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network)
    (batch,) = task.batches("test", 32)
    start = network.config.decoder_start_token_id
    assert batch["decoder_input_ids"][:, 0].tolist() == [start] * 12
    for source, target, read in zip(batch["input_ids"], batch["labels"], batch["decoder_input_ids"], strict=True):
        said = target[target != IGNORED].tolist()
        assert words(said)[1:-1] == [
            w for w in reversed(words(source.tolist())) if w not in ("[CLS]", "[SEP]", "[PAD]")
        ]
        assert read[1 : len(said)].tolist() == said[:-1]
        assert set(read[len(said) + 1 :].tolist()) <= {network.config.pad_token_id}
    assert set(batch["decoder_input_ids"].flatten().tolist()).isdisjoint({IGNORED})


def test_the_loss_is_what_the_library_makes_of_labels(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network)
    (batch,) = task.batches("test", 32)
    with torch.no_grad():
        logits = task.logits(network, batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        expected = network(**inputs).loss
    assert logits.shape == (int((batch["labels"] != IGNORED).sum()), 120)
    assert float(task.loss_of(logits, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_is_a_beam_search_judged_by_sacrebleu(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, beams=3)
    found = task.evaluate(network, "test")
    (batch,) = task.batches("test", 32)
    texts, wanted = task.translate(network, batch, 16), [row["target"] for row in rows_of(12)]
    order = [wanted.index(" ".join(words(line[line != IGNORED].tolist())[1:-1])) for line in batch["labels"]]
    references = [[wanted[index] for index in order]]
    assert len(set(texts)) > 1
    assert found.metrics() == {
        "bleu": BLEU().corpus_score(texts, references).score,
        "chrf": CHRF().corpus_score(texts, references).score,
    }
    assert found.rows == 12
    measured = intervals(found, 0)
    assert measured["chrf"]["low"] < measured["chrf"]["value"] < measured["chrf"]["high"]


def test_choosing_an_epoch_needs_no_search(
    tmp_path: Path, network: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path, network)
    monkeypatch.setattr(task, "translate", None)
    found = task.validate(network)
    assert (found.metrics(), found.rows) == ({}, 9)
    (batch,) = task.batches("validation", 32)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(task.loss(network, batch)), rel=1e-5)


def test_a_network_that_never_ends_is_stopped(tmp_path: Path) -> None:
    network = tiny_network("t5", NETWORKS["t5"])
    network.generation_config.eos_token_id = None
    task = task_of(tmp_path, network, beams=1)
    longest = task._longest(network, "test")
    (batch,) = task.batches("test", 32)
    assert longest == (8 + 2) * 3 // 2 + 1
    ids = network.generate(input_ids=batch["input_ids"], max_length=longest)  # type: ignore[operator]
    assert ids.shape[1] == longest
    assert task.evaluate(network, "test").rows == 12


def test_both_sides_are_cut_and_counted(tmp_path: Path, network: PreTrainedModel) -> None:
    rows = [{"source": "good " * 30, "target": "a film"}, {"source": "good", "target": "good " * 40}]
    data = write(tmp_path / "data", test=rows)
    task = Translation(data, tokenizer_in(tmp_path / "model"), network, Settings(8))
    assert task.warnings == [("INPUT_TRUNCATED", "2 inputs are longer than max_length (8 tokens) and were cut.")]


def test_sums_of_sentences_are_the_corpus_to_the_last_bit() -> None:
    chance = random.Random(3)
    wanted = [" ".join(chance.choices(FILLER, k=chance.randrange(1, 20))) + "." for _ in range(60)]
    found = [" ".join(word for word in text.split() if chance.random() < 0.8) for text in wanted]
    statistics = sentence_statistics(found, wanted)
    for rows in (np.arange(60), np.array([3, 3, 17, 40])):
        texts, references = [found[row] for row in rows], [[wanted[row] for row in rows]]
        expected = BLEU().corpus_score(texts, references).score, CHRF().corpus_score(texts, references).score
        assert bleu_and_chrf(statistics[rows].sum(0)) == expected
    assert bleu_and_chrf(sentence_statistics(["", ""], ["a", "b"]).sum(0)) == (0.0, 0.0)


def test_marian_has_a_tokenizer_for_each_side(tmp_path: Path) -> None:
    sides = {"source": ["a good film and a good plot"] * 9, "target": ["un bon film et une bonne intrigue"] * 9}
    pieces = {"</s>": 0, "<unk>": 1}
    for side, lines in sides.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(tmp_path / side), vocab_size=24, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{side}.model"))
        for index in range(3, model.get_piece_size()):
            pieces.setdefault(model.id_to_piece(index), len(pieces))
    pieces["<pad>"] = len(pieces)
    (tmp_path / "vocab.json").write_text(json.dumps(pieces))
    files: dict[str, Any] = {f"{side}_spm": str(tmp_path / f"{side}.model") for side in sides}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tokenizer recommends a package
        MarianTokenizer(**files, vocab=str(tmp_path / "vocab.json")).save_pretrained(tmp_path / "model")
    network = tiny_network("marian", NETWORKS["marian"], pad_token_id=pieces["<pad>"], eos_token_id=0)
    rows = [{"source": sides["source"][0], "target": sides["target"][0]}]
    task = Translation(write(tmp_path / "data", test=rows), tmp_path / "model", network, Settings(40))
    (batch,) = task.batches("test", 1)
    decoded = task.tokenizer.batch_decode(batch["labels"], skip_special_tokens=True)
    assert decoded == [rows[0]["target"]]
    assert 1 not in batch["input_ids"] and 1 not in batch["labels"]
    assert task.evaluate(network, "test").rows == 1


def test_unusable_rows(tmp_path: Path) -> None:
    network = tiny_network("t5", NETWORKS["t5"])
    data = write(tmp_path / "data", test=[{"source": "a", "target": "a"}, {"source": "a"}])
    with pytest.raises(EngineError, match="line 2 of test is no row of translation: it needs source and target"):
        Translation(data, tokenizer_in(tmp_path / "model"), network, Settings(8))


def test_target_ids_need_embeddings_too(tmp_path: Path) -> None:
    network = tiny_network("marian", NETWORKS["marian"], decoder_vocab_size=10)
    with pytest.raises(EngineError, match="no embedding"):
        task_of(tmp_path, network)


def test_the_divergence_leaves_padding_out(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network)
    (batch,) = task.batches("test", 32)
    with torch.no_grad():
        student, scores = (
            task.logits(network, batch),
            network(**{name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}).logits,
        )
    kept = batch["labels"] != IGNORED
    assert torch.allclose(student, scores[kept], atol=1e-5)
    teacher = student.roll(1, -1)
    each = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    assert float(task.divergence(student, teacher, 1.0)) == pytest.approx(float(each.sum(-1).mean()), rel=1e-4)
