"""Training: it learns, keeps the best epoch, keeps zeros, and says when it diverges."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import Distillation, Training
from tests.models import tiny_dataset, tiny_model
from workers.engine.failures import EngineError
from workers.engine.families import FAMILIES
from workers.engine.recovery import Course, Standing, distilled_loss, learning_rate_curve, make_optimizer, train
from workers.engine.reporter import Reporter
from workers.engine.structures.weights import linears_of
from workers.engine.tasks.text_classification import TextClassification


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def case(tmp_path: Path) -> tuple[PreTrainedModel, TextClassification]:
    model, data = tiny_model(tmp_path / "model"), tiny_dataset(tmp_path / "data", train=96, validation=32, test=8)
    network = FAMILIES["bert"].load(model)
    return network, TextClassification(data, model, network, 16, 0)


def recipe(**parts: Any) -> Training:
    return TypeAdapter(Training).validate_python({"epochs": 3, "learning_rate": 3e-3, "batch_size": 16} | parts)


def run(network: PreTrainedModel, task: TextClassification, course: Course, **more: Any) -> list[dict[str, Any]]:
    lines = io.StringIO()
    train(network, task, course, Reporter(lines), **more)
    return [json.loads(line) for line in lines.getvalue().splitlines()]


SGD = {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.001}


@pytest.mark.parametrize(
    ("parts", "bfloat16", "distilled"),
    [
        ({}, False, True),
        ({"optimizer": SGD, "learning_rate": 3e-2, "decay": "cosine"}, False, False),
        ({"decay": "constant", "warmup_ratio": 0.0}, True, False),
    ],
)
def test_training_learns_and_follows_the_seed(
    case: tuple[PreTrainedModel, TextClassification], parts: dict[str, Any], bfloat16: bool, distilled: bool
) -> None:
    network, task = case
    start = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = FAMILIES["bert"].load(Path(str(network.name_or_path))) if distilled else None
    distillation = Distillation(weight=0.1) if distilled else None
    course = Course("finetuning", recipe(**parts), 3, 7, bfloat16, distillation=distillation)
    ends = []
    for _ in range(2):
        network.load_state_dict(start)
        torch.manual_seed(0)
        lines = run(network, task, course, teacher=teacher)
        ends.append({name: value.clone() for name, value in network.state_dict().items()})
    accuracies = [line["value"] for line in lines if line.get("name") == "finetuning/validation_accuracy"]
    losses = [line["value"] for line in lines if line.get("name") == "finetuning/validation_loss"]
    assert len(accuracies) == 4
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert task.evaluate(network, "validation")["loss"] in [pytest.approx(loss, rel=1e-4) for loss in losses]


def test_weights_get_no_worse_than_they_were(case: tuple[PreTrainedModel, TextClassification]) -> None:
    network, task = case
    run(network, task, Course("baseline", recipe(), 3, 0))
    good = {name: value.clone() for name, value in network.state_dict().items()}
    ruinous = recipe(learning_rate=5.0, decay="constant", optimizer={"kind": "sgd", "momentum": 0.0})
    lines = run(network, task, Course("finetuning", ruinous, 1, 0))
    assert [line["data"]["epoch"] for line in lines if line["type"] == "event"] == [0]
    assert all(torch.equal(value, good[name]) for name, value in network.state_dict().items())


def test_zeros_stay_and_other_weights_move(case: tuple[PreTrainedModel, TextClassification]) -> None:
    network, task = case
    with torch.no_grad():
        for linear in linears_of(network):
            linear.weight[:, ::2] = 0
    before = [linear.weight.detach().clone() for linear in linears_of(network)]
    lines = run(network, task, Course("finetuning", recipe(), 3, 0, sparse=True))
    assert lines[-1]["data"]["epoch"] > 0
    for old, linear in zip(before, linears_of(network), strict=True):
        assert bool((linear.weight[:, ::2] == 0).all())
        assert not torch.equal(linear.weight, old)


def test_a_loss_that_is_never_finite_is_the_users_to_mend(case: tuple[PreTrainedModel, TextClassification]) -> None:
    network, task = case
    with torch.no_grad():
        linears_of(network)[0].weight[0, 0] = math.nan
    lines = io.StringIO()
    with pytest.raises(EngineError) as caught:
        train(network, task, Course("finetuning", recipe(), 1, 0), Reporter(lines))
    assert (caught.value.code, caught.value.blame) == ("DIVERGED", "user")
    points = [json.loads(line) for line in lines.getvalue().splitlines() if "finetuning/loss" in line]
    assert points and all(point["value"] is None for point in points)


def test_a_batch_without_a_finite_loss_leaves_the_weights_alone(
    case: tuple[PreTrainedModel, TextClassification], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, task = case
    honest, calls = task.loss, [0]

    def sometimes(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        calls[0] += 1
        return honest(network, batch) * (math.inf if calls[0] % 2 else 1.0)

    monkeypatch.setattr(task, "loss", sometimes)
    run(network, task, Course("finetuning", recipe(), 1, 0))
    assert calls[0] == 6
    assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def test_standings() -> None:
    assert Standing(0.9, 1.0).beats(Standing(0.8, 0.1))
    assert Standing(0.8, 0.1).beats(Standing(0.8, 0.2))
    assert not Standing(0.8, 0.2).beats(Standing(0.8, 0.2))
    assert not Standing(0.9, math.nan).beats(Standing(0.1, 5.0))
    assert Standing(0.1, 5.0).beats(Standing(0.9, math.nan))


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_learning_rate_rises_and_decays(decay: str, middle: float) -> None:
    rate = learning_rate_curve(recipe(learning_rate=1.0, decay=decay, warmup_ratio=0.2), 100)
    assert [rate(step) for step in (0, 9, 19, 20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert rate(60) == pytest.approx(middle)
    assert rate(99) == pytest.approx(1.0 if decay == "constant" else 0.0, abs=0.02)


def test_biases_and_norms_do_not_decay(case: tuple[PreTrainedModel, TextClassification]) -> None:
    groups = make_optimizer(case[0], recipe(optimizer={"kind": "adamw", "weight_decay": 0.1})).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.dim() == 1 for parameter in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(case[0].parameters()))


def test_the_distilled_loss_is_the_papers(case: tuple[PreTrainedModel, TextClassification], tmp_path: Path) -> None:
    network, task = case
    teacher = FAMILIES["bert"].load(tiny_model(tmp_path / "teacher"), new_labels=["a", "b"], seed=3)
    network.eval()
    teacher.eval()
    batch = next(task.batches("train", 8))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        found = distilled_loss(network, teacher, batch, Distillation(temperature=2.0, weight=0.25))
        student, wanted = network(**inputs).logits, teacher(**inputs).logits
    target = (wanted / 2).softmax(-1)
    divergence = (target * (target.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    expected = 0.75 * functional.cross_entropy(student, batch["labels"]) + 0.25 * 4 * divergence
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        alone = distilled_loss(network, network, batch, Distillation(weight=1.0))
    assert float(alone) == pytest.approx(0.0, abs=1e-6)
