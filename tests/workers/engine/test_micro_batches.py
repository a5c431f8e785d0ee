"""Micro-batches: their gradients add up to those of the whole batch."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Distillation, Regularizer, Sgd, TaskName, Training
from tests.models import rows, tiny_network
from tests.workers.engine.interrupted import CASES, carry_out, prepared
from tests.workers.engine.test_tasks_translation import rows_of
from tests.workers.engine.tiny_tasks import bert_for, tokenizer_in, write
from workers.engine.micro_batches import accumulate, accumulate_jointly, divide
from workers.engine.penalties import regularizer
from workers.engine.recovery import Course, train
from workers.engine.reporter import Reporter
from workers.engine.tasks import TASKS, Batch, Settings, Task
from workers.engine.tasks.task import inputs_in

UNEVEN = 13
"""Rows of a batch that divide into no equal parts."""
PAIRS = [{"text": row["text"], "text_pair": row["text"][::-1]} for row in rows(UNEVEN)]
SETS = [{"text": row["text"], "labels": ["a", "b"][: 1 + row["label"]]} for row in rows(UNEVEN)]
KINDS: dict[str, tuple[TaskName, list[dict[str, Any]], dict[str, Any]]] = {
    "one label": ("text-classification", rows(UNEVEN), {"num_labels": 2}),
    "sets of labels": ("text-classification", SETS, {"num_labels": 2, "id2label": {0: "a", 1: "b"}}),
    "hidden tokens": ("masked-lm", rows(UNEVEN), {}),
    "translation": ("translation", rows_of(UNEVEN), {}),
    "pairs": ("sentence-embedding", PAIRS, {}),
    "texts": ("sentence-embedding", [{"text": row["text"]} for row in rows(UNEVEN)], {}),
}
HEADS = {"text-classification": "SequenceClassification", "masked-lm": "MaskedLM", "sentence-embedding": ""}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("workers.engine.compress.verify", lambda *_arguments, **_options: [])


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Task]:
    name, given, changes = KINDS[request.param]
    network = bert_for(HEADS[name], **changes) if name in HEADS else tiny_network("marian", "MarianMTModel")
    data = write(tmp_path / "data", train=given, validation=given, test=given)
    task = TASKS[name](data, tokenizer_in(tmp_path / "model"), network, Settings(16))
    task.teacher = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
    return network, task


def gradients(network: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def in_parts(network: PreTrainedModel, task: Task, batch: Batch, parts: int) -> float:
    if not task.joint:
        return accumulate(batch, parts, lambda part: task.loss(network, part))
    inputs = inputs_in(batch, network)
    return accumulate_jointly(
        inputs, parts, lambda part: task.logits(network, part), lambda outputs: task.loss_of(outputs, batch)
    )


@pytest.mark.parametrize("parts", [2, 5, 64])
def test_gradients_of_parts_are_those_of_the_whole(case: tuple[PreTrainedModel, Task], parts: int) -> None:
    network, task = case
    network.train(False)
    (batch,) = task.batches("train", UNEVEN, torch.Generator().manual_seed(1))
    loss = task.loss(network, batch)
    loss.backward()
    whole = gradients(network)
    value = in_parts(network, task, batch, parts)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    found = gradients(network)
    assert found.keys() == whole.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest)


def test_outputs_that_are_computed_twice_meet_the_same_dropout(tmp_path: Path) -> None:
    network = bert_for("").train()
    data = write(tmp_path / "data", train=PAIRS, validation=PAIRS)
    task = TASKS["sentence-embedding"](data, tokenizer_in(tmp_path / "model"), network, Settings(16))
    (batch,) = task.batches("train", UNEVEN, torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def outputs(part: Batch) -> Tensor:
        seen.append(task.logits(network, part))
        return seen[-1]

    accumulate_jointly(inputs_in(batch, network), 3, outputs, lambda found: task.loss_of(found, batch))
    after = torch.rand(1)
    assert all(torch.equal(first, second) for first, second in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(after, torch.rand(1))


def test_parts_without_labels_are_left_out() -> None:
    labels = torch.tensor([[-100, -100], [3, -100]])
    batch = {"input_ids": torch.ones(2, 2, dtype=torch.long), "labels": labels}
    weight = torch.ones((), requires_grad=True)

    def loss(part: Batch) -> Tensor:
        assert bool((part["labels"] != -100).any())
        return weight * 2

    assert accumulate(batch, 2, loss) == 2.0
    assert weight.grad is not None and float(weight.grad) == 2.0


def test_rows_are_divided_as_evenly_as_they_go() -> None:
    batch = {"input_ids": torch.arange(7)[:, None], "labels": torch.arange(7)}
    assert [part["labels"].tolist() for part in divide(batch, 3)] == [[0, 1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("distilled", [True, False])
def test_training_in_parts_ends_where_training_does(tmp_path: Path, distilled: bool) -> None:
    data = write(tmp_path / "data", train=rows(48), validation=rows(16, 1), test=rows(16, 2))
    # Not AdamW, which makes as large a step of a rounding error as of a gradient.
    recipe = Training(epochs=2, learning_rate=3e-2, batch_size=16, optimizer=Sgd(kind="sgd", momentum=0.9))
    ends = []
    for parts in (1, 3):
        network = bert_for("SequenceClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        task = TASKS["text-classification"](data, tokenizer_in(tmp_path / "model"), network, Settings(16))
        course = Course(
            "finetuning",
            recipe,
            2,
            0,
            parts=parts,
            distillation=Distillation() if distilled else None,
            penalty=regularizer(network, Regularizer(kind="l2", strength=1e-3)),
            keep_last=True,
        )
        lines = io.StringIO()
        train(network, task, course, Reporter(lines), copy.deepcopy(network) if distilled else None)
        told = [json.loads(line) for line in lines.getvalue().splitlines()]
        losses = [line["value"] for line in told if line.get("name") == "finetuning/loss"]
        ends.append((losses, [parameter.detach().clone() for parameter in network.parameters()]))
    (whole, weights), (divided, others) = ends
    assert len(whole) == 6 and divided == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-5)


def test_all_batches_of_a_divided_job_are_as_many_times_smaller(tmp_path: Path) -> None:
    case = CASES["zeros that stay"]
    case.inputs(tmp_path / "inputs")
    sizes: list[int] = []
    forward = TASKS["text-classification"].logits

    def watched(self: Any, network: PreTrainedModel, batch: Batch) -> Tensor:
        sizes.append(len(batch["input_ids"]))
        return forward(self, network, batch)

    work = prepared(tmp_path / "work", case, tmp_path / "inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["text-classification"], "logits", watched)
        carry_out(work, divisor=8)
    # An eighth of the 64 rows of an evaluation, and of the 16 of a batch of training.
    assert set(sizes) == {8, 2}
