"""Pooling, the three kinds of rows, teachers, figures against SciPy."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tests.models import rows
from tests.workers.engine.tiny_tasks import bert_for, tokenizer_in, words, write
from workers.engine.evaluation import intervals
from workers.engine.failures import EngineError
from workers.engine.tasks import Batch, Settings
from workers.engine.tasks.sentence_embedding import SentenceEmbedding, pooling_of

TEXTS = [row["text"] for row in rows(40)]
ALONE = [{"text": text} for text in TEXTS]
PAIRS = [{"text": text, "text_pair": partner} for text, partner in pairwise(TEXTS)]
SCORED = [row | {"score": number % 6} for number, row in enumerate(PAIRS)]


@pytest.fixture
def network() -> PreTrainedModel:
    return bert_for("")


def task_of(tmp_path: Path, network: PreTrainedModel, data: list[dict[str, Any]]) -> SentenceEmbedding:
    folder = write(tmp_path / "data", train=data, test=data)
    return SentenceEmbedding(folder, tokenizer_in(tmp_path / "model"), network, Settings(16))


def embedded(network: PreTrainedModel, batch: Batch) -> Tensor:
    """Means over tokens, one text at a time and without padding."""
    with torch.no_grad():
        texts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return torch.stack([network(input_ids=ids[None]).last_hidden_state[0].mean(0) for ids in texts])


def test_embeddings_are_means_over_tokens(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, ALONE)
    batch = next(task.batches("test", 40))
    assert torch.allclose(task.logits(network, batch), embedded(network, batch), atol=1e-5)


def test_or_the_first_token_where_the_model_says_so(tmp_path: Path, network: PreTrainedModel) -> None:
    tokenizer_in(tmp_path / "model" / "1_Pooling")
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    task = task_of(tmp_path, network, ALONE)
    batch = next(task.batches("test", 8))
    states = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(task.logits(network, batch), states[:, 0])


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_ways_of_pooling(tmp_path: Path, config: dict[str, Any], mode: str | None) -> None:
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if mode is not None:
        assert pooling_of(tmp_path) == mode
        return
    with pytest.raises(EngineError, match="mean or cls"):
        pooling_of(tmp_path)


def test_partners_follow_the_texts(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, PAIRS)
    batch = next(task.batches("test", 8))
    assert (len(batch["input_ids"]), task.size(batch)) == (16, 8)
    rows_of_ids = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    texts = [" ".join(words(ids[mask.bool()].tolist())[1:-1]) for ids, mask in rows_of_ids]
    pairs = {(row["text"], row["text_pair"]) for row in PAIRS}
    assert set(zip(texts[:8], texts[8:], strict=True)) <= pairs
    assert sum(task.size(batch) for batch in task.sample(12, 5)) == task.sample_size(12) == 12


def test_scores_are_learned_by_the_cosine(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, SCORED)
    batch = next(task.batches("test", 8))
    first, second = embedded(network, batch).chunk(2)
    expected = ((functional.cosine_similarity(first, second) - batch["score"] / 5) ** 2).mean()
    with torch.no_grad():
        assert float(task.loss(network, batch)) == pytest.approx(float(expected), rel=1e-4)


def test_pairs_find_each_other_among_the_batch(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, PAIRS)
    batch = next(task.batches("test", 8))
    first, second = embedded(network, batch).chunk(2)
    scores = 20 * torch.stack([functional.cosine_similarity(text[None], second) for text in first])
    with torch.no_grad():
        expected = functional.cross_entropy(scores, torch.arange(8))
        assert float(task.loss(network, batch)) == pytest.approx(float(expected), rel=1e-4)
    assert "spearman" not in task.evaluate(network, "test").metrics()


def test_a_text_alone_stays_where_the_teacher_puts_it(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, ALONE)
    batch = next(task.batches("test", 8))
    with torch.no_grad():
        assert float(task.loss(network, batch)) == pytest.approx(0.0, abs=1e-6)
        task.teacher = bert_for("", seed=1)
        target = embedded(task.teacher, batch)
        expected = (1 - functional.cosine_similarity(embedded(network, batch), target)).mean()
        assert float(task.loss(network, batch)) == pytest.approx(float(expected), rel=1e-4)


def test_samples_have_a_slope_even_where_the_network_is_its_teacher(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, ALONE)
    task.teacher = bert_for("")
    batch, again = next(task.sample(8, 8)), next(task.sample(8, 8))
    assert torch.equal(batch["blur"], again["blur"])
    task.loss(network, batch).backward()
    weight = network.get_submodule("encoder.layer.0.output.dense").weight
    assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
    assert float(weight.grad.abs().max()) > 1e-5
    assert "blur" not in next(task.batches("train", 8))


def test_figures_are_scipys_and_the_teachers(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, SCORED)
    alone = task.evaluate(network, "test")
    assert alone.metrics()["agreement"] == pytest.approx(1.0)
    task.teacher = bert_for("", seed=1)
    found = task.evaluate(network, "test")
    likeness, scores, agreement = [], [], []
    for batch in task.batches("test", 64):
        ours, theirs = embedded(network, batch), embedded(task.teacher, batch)
        texts, partners = ours.chunk(2)
        likeness.append(functional.cosine_similarity(texts, partners))
        scores.append(batch["score"])
        agreement.append(functional.cosine_similarity(ours, theirs))
    assert list(found.metrics()) == ["spearman", "agreement"]
    correlation = spearmanr(torch.cat(likeness), torch.cat(scores)).statistic
    expected = {"spearman": correlation, "agreement": float(torch.cat(agreement).mean())}
    assert found.metrics() == pytest.approx(expected, rel=1e-3)
    measured = intervals(found, 0)
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in measured.values())
    constant = np.zeros(5, dtype=np.int64)
    assert found.resampled(constant)[0] == 0.0


def test_agreement_alone_has_an_interval_too(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, ALONE)
    task.teacher = bert_for("", seed=1)
    measured = intervals(task.evaluate(network, "test"), 0)
    assert set(measured) == {"agreement"}
    assert -1 < measured["agreement"]["low"] < measured["agreement"]["high"] < 1
    assert task.evaluate(task.teacher, "test").metrics()["agreement"] == pytest.approx(1.0)


def test_the_divergence_has_no_temperature(tmp_path: Path, network: PreTrainedModel) -> None:
    task = task_of(tmp_path, network, ALONE)
    ours, theirs = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    expected = float((1 - functional.cosine_similarity(ours, theirs)).mean())
    assert float(task.divergence(ours, theirs, 2.0)) == pytest.approx(expected)
    assert float(task.divergence(ours, 3 * ours, 2.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"text": "a", "score": 1}, "line 2 of test"),
        ({"text": "a", "text_pair": None}, "line 2 of test"),
        ({"text": "a", "text_pair": "b", "score": "1"}, "line 2 of test"),
        ({"text": "a"}, "every row"),
    ],
)
def test_unusable_rows(tmp_path: Path, network: PreTrainedModel, row: dict[str, Any], where: str) -> None:
    data = write(tmp_path / "data", test=[PAIRS[0], row])
    with pytest.raises(EngineError, match=where) as caught:
        SentenceEmbedding(data, tokenizer_in(tmp_path / "model"), network, Settings(8))
    assert (caught.value.code, caught.value.blame) == ("DATA_UNUSABLE", "user")
