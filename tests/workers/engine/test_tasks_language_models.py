"""Blocks of running text, masks, perplexity."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tests.models import FILLER, rows, tiny_network
from tests.workers.engine.tiny_tasks import IDS, bert_for, tokenizer_in, words, write
from workers.engine.evaluation import intervals
from workers.engine.failures import EngineError
from workers.engine.tasks import Settings
from workers.engine.tasks.causal_lm import CausalLM
from workers.engine.tasks.language_model import perplexity
from workers.engine.tasks.masked_lm import MaskedLM
from workers.engine.tasks.row_task import IGNORED

DOCUMENTS = ["the film was good", "a plot", "the actor was very fine and the scene was dull"]
END = IDS["."]


def documents(folder: Path, *texts: str) -> Path:
    return write(folder, test=[{"text": text} for text in texts])


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_network(request.param, {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[request.param])


def causal(tmp_path: Path, network: PreTrainedModel, data: Path, length: int, **options: Any) -> CausalLM:
    return CausalLM(data, tokenizer_in(tmp_path / "model", **options), network, Settings(length))


def test_documents_stand_end_to_end_in_blocks(tmp_path: Path, decoder: PreTrainedModel) -> None:
    task = causal(tmp_path, decoder, documents(tmp_path / "data", *DOCUMENTS), 6, eos_token=".")
    stream: list[str] = []
    for text in DOCUMENTS:
        stream += [*text.split(), "."]
    blocks = [stream[start : start + 6] for start in range(0, len(stream), 6)]
    # The last token, alone in its block, would have nothing to predict.
    assert task.rows("test") == len(blocks) - 1 == 3
    found = [
        words([*ids[mask.bool()].tolist(), label[label != IGNORED].tolist()[-1]])
        for batch in task.batches("test", 3)
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    assert sorted(found) == sorted(blocks[:3])


def test_tokens_are_told_by_those_before_them(tmp_path: Path, decoder: PreTrainedModel) -> None:
    task = causal(tmp_path, decoder, documents(tmp_path / "data", *DOCUMENTS), 7, eos_token=".")
    (batch,) = task.batches("test", 9)
    assert bool((batch["attention_mask"] == 0).any())
    with torch.no_grad():
        logits = task.logits(decoder, batch)
        whole = batch["labels"].clone()
        expected = decoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["input_ids"]
        ).logits[whole != IGNORED]
    assert torch.allclose(logits, expected)
    assert batch["labels"][:, :-1][batch["attention_mask"][:, 1:] == 1].tolist() == (
        batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] == 1].tolist()
    )


def test_perplexity_is_the_exponential_of_the_mean_loss(tmp_path: Path, decoder: PreTrainedModel) -> None:
    texts = [row["text"] for row in rows(60)]
    task = causal(tmp_path, decoder, documents(tmp_path / "data", *texts), 16, eos_token=".")
    found = task.evaluate(decoder, "test")
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in task.batches("test", 5):
            scores = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            total += float(functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten(), reduction="sum"))
            tokens += int((batch["labels"] != IGNORED).sum())
    assert found.rows == task.rows("test") > 20
    assert found.loss == pytest.approx(total / tokens, rel=1e-5)
    assert found.metrics() == {"perplexity": pytest.approx(math.exp(total / tokens), rel=1e-4)}
    measured = intervals(found, 0)["perplexity"]
    assert measured["low"] < measured["value"] < measured["high"]


def test_long_blocks_are_sampled_few_at_a_time(tmp_path: Path, decoder: PreTrainedModel) -> None:
    texts = " ".join(DOCUMENTS * 400)
    data = write(tmp_path / "data", calibration=[{"text": texts}])
    sampled = [next(causal(tmp_path, decoder, data, length).sample(32, 32)) for length in (16, 256, 2048)]
    rows = [len(batch["input_ids"]) for batch in sampled]
    assert rows == [32, 4, 1], "a token has a score and a gradient for every entry of the vocabulary"


def test_perplexity_is_a_finite_number_however_bad() -> None:
    assert perplexity(np.array([2000.0, 2.0])) == (math.exp(700),)


def test_without_an_end_of_text_documents_follow_each_other(tmp_path: Path, decoder: PreTrainedModel) -> None:
    task = causal(tmp_path, decoder, documents(tmp_path / "data", "a film", "the plot was"), 16)
    (batch,) = task.batches("test", 1)
    assert words(batch["input_ids"][0].tolist()) == ["a", "film", "the", "plot"]


@pytest.mark.parametrize("kind", [CausalLM, MaskedLM])
def test_unusable_rows(tmp_path: Path, kind: type[CausalLM | MaskedLM]) -> None:
    data = write(tmp_path / "data", test=[{"text": "a"}, {"text": None}])
    with pytest.raises(EngineError, match=f"line 2 of test is no row of {kind.name}: it needs text"):
        kind(data, tokenizer_in(tmp_path / "model"), bert_for("MaskedLM"), Settings(8))


# Masked language models


@pytest.fixture
def encoder() -> PreTrainedModel:
    return bert_for("MaskedLM")


def masked(tmp_path: Path, network: PreTrainedModel, count: int, length: int = 16) -> MaskedLM:
    texts = [{"text": " ".join(FILLER[(n + k) % 10] for k in range(2 + n % 20))} for n in range(count)]
    data = write(tmp_path / "data", train=texts, test=texts)
    return MaskedLM(data, tokenizer_in(tmp_path / "model"), network, Settings(length))


def test_long_texts_become_blocks_and_empty_ones_nothing(tmp_path: Path, encoder: PreTrainedModel) -> None:
    data = documents(tmp_path / "data", "good " * 25, "", "a film")
    task = MaskedLM(data, tokenizer_in(tmp_path / "model"), encoder, Settings(12))
    (batch,) = task.batches("test", 9)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert sorted(lengths) == [4, 5 + 2, 12, 12]
    assert {words(ids.tolist())[0] for ids in batch["input_ids"]} == {"[CLS]"}
    assert task.warnings == []


def test_one_in_seven_is_hidden_and_most_of_these_are_masked(tmp_path: Path, encoder: PreTrainedModel) -> None:
    task = masked(tmp_path, encoder, 2000)
    plain = hidden = as_mask = as_is = specials = 0
    for batch in task.batches("train", 100, torch.Generator().manual_seed(0)):
        ids, labels = batch["input_ids"], batch["labels"]
        kept = labels != IGNORED
        assert bool(kept.any(1).all())
        plain += int((batch["attention_mask"] == 1).sum()) - 2 * len(ids)
        hidden, as_mask = hidden + int(kept.sum()), as_mask + int((ids == IDS["[MASK]"])[kept].sum())
        as_is += int((ids == labels)[kept].sum())
        specials += int((labels[kept] < len(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))).sum())
    assert hidden / plain == pytest.approx(0.17, abs=0.03)  # at least one in every row, be it ever so short
    assert as_mask / hidden == pytest.approx(0.8, abs=0.03)
    assert as_is / hidden == pytest.approx(0.1, abs=0.03)
    assert specials == 0


def test_epochs_differ_and_evaluations_do_not(tmp_path: Path, encoder: PreTrainedModel) -> None:
    task = masked(tmp_path, encoder, 40)
    generator = torch.Generator().manual_seed(0)

    def hidden(chance: torch.Generator | None) -> list[tuple[int, ...]]:
        return sorted(tuple(row) for batch in task.batches("train", 8, chance) for row in batch["labels"].tolist())

    assert hidden(generator) != hidden(generator)
    assert hidden(None) == hidden(None)
    assert task.evaluate(encoder, "test").metrics() == task.evaluate(encoder, "test").metrics()
    samples = [[batch["labels"].tolist() for batch in task.sample(16, 8)] for _ in range(2)]
    assert samples[0] == samples[1]


def test_only_hidden_tokens_are_judged(tmp_path: Path, encoder: PreTrainedModel) -> None:
    task = masked(tmp_path, encoder, 30)
    found, total, tokens = task.evaluate(encoder, "test"), 0.0, 0
    with torch.no_grad():
        for batch in task.batches("test", 64):
            logits = task.logits(encoder, batch)
            total += float(task.loss_of(logits, batch)) * len(logits)
            tokens += len(logits)
            scores = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            assert torch.allclose(logits, scores[batch["labels"] != IGNORED])
    assert found.metrics()["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_a_tokenizer_without_a_mask(tmp_path: Path, encoder: PreTrainedModel) -> None:
    tokenizer_in(tmp_path / "model", mask_token=None)
    with pytest.raises(EngineError, match="no mask token"):
        MaskedLM(documents(tmp_path / "data", "a"), tmp_path / "model", encoder, Settings(8))
