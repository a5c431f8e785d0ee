"""A whole job over HTTP for every task: upload, cut, fine-tune, measure, download, load without our code."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from service.specs import QUALITY_METRICS
from tests import downloaded
from tests.e2e.conftest import Workplace
from tests.models import BAD, GOOD, rows, tiny_network
from tests.workers.engine.tiny_tasks import tokenizer_in, write

NETWORKS = {
    "text-classification": ("bert", "BertForSequenceClassification"),
    "question-answering": ("bert", "BertForQuestionAnswering"),
    "translation": ("marian", "MarianMTModel"),
    "token-classification": ("bert", "BertForTokenClassification"),
    "causal-lm": ("llama", "LlamaForCausalLM"),
    "masked-lm": ("bert", "BertForMaskedLM"),
    "sentence-embedding": ("bert", "BertModel"),
}
CUTS = [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}]


def row_for(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `tests.models` as a row of a task: the word that gives its label away is the answer and has the tag."""
    text, label = row["text"], row["label"]
    words = text.split()
    telling = next(word for word in words if word in GOOD + BAD)
    return {
        "question-answering": {
            "question": "film was",
            "context": text,
            "answers": {"text": [telling], "answer_start": [text.index(telling)]},
        },
        "translation": {"source": text, "target": " ".join(reversed(words))},
        "token-classification": {"tokens": words, "tags": ["B-WORD" if word == telling else "O" for word in words]},
        "causal-lm": {"text": text},
        "masked-lm": {"text": text},
        "sentence-embedding": {"text": text, "text_pair": telling, "score": label},
    }.get(task, row)


def model_for(task: str, folder: Path) -> Path:
    """A tiny network with the task's head and a tokenizer of whole words."""
    labels: dict[str, Any] = {"id2label": {0: "O", 1: "B-WORD"}} if task == "token-classification" else {}
    tiny_network(*NETWORKS[task], **labels).save_pretrained(folder)
    return tokenizer_in(folder, eos_token="[SEP]")


def data_for(task: str, folder: Path) -> Path:
    """Three splits."""
    sizes = {"train": 48, "validation": 16, "test": 16}
    splits = {split: rows(count, seed) for seed, (split, count) in enumerate(sizes.items())}
    return write(folder, **{split: [row_for(task, row) for row in them] for split, them in splits.items()})


@pytest.fixture(scope="module")
def client(workplace: Workplace) -> Iterator[Client]:
    data = workplace.folder / "secateur-data"
    with Client((data / "url").read_text().strip(), (data / "api-key").read_text().strip()) as client:
        yield client


@pytest.fixture(scope="module")
def jobs(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One job for each task, all queued at once: while one is downloaded and loaded, the worker does the next."""
    queued = {}
    for task in QUALITY_METRICS:
        folder = tmp_path_factory.mktemp(task)
        ids = {
            "model_id": client.push_model(model_for(task, folder / "model"))["id"],
            "dataset_id": client.push_dataset(data_for(task, folder / "data"), task)["id"],
        }
        spec = {"name": task, "task": task, "pruning": {"cuts": CUTS}, "finetuning": {"epochs": 1}, "benchmark": None}
        queued[task] = client.submit_job(spec | ids)["id"]
    return queued


@pytest.mark.parametrize("task", QUALITY_METRICS)
def test_a_model_goes_up_and_a_pruned_one_comes_down(
    client: Client, jobs: dict[str, str], task: str, tmp_path: Path
) -> None:
    job = client.watch_job(jobs[task])
    assert job["status"] == "succeeded", job["error"]
    before, after = job["result"]["before"], job["result"]["after"]
    assert set(before["metrics"]) == set(after["metrics"]) == set(QUALITY_METRICS[task])
    assert after["structure"]["ffn_width"] == [width // 2 for width in before["structure"]["ffn_width"]]
    assert after["parameters"] < before["parameters"]
    curves = {series["name"]: series["points"] for series in client.job_metrics(job["id"])}
    assert curves["finetuning/loss"]

    client.pull_job(job["id"], tmp_path / "pruned")
    row = json.dumps(row_for(task, rows(1)[0]))
    command = [sys.executable, "-I", downloaded.__file__, str(tmp_path / "pruned"), task, row]
    answered = subprocess.run(command, capture_output=True, text=True)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout) is not None
