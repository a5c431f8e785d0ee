"""Training: it learns, keeps the best epoch, keeps zeros, takes penalties, and says when it diverges."""

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS, Distillation, TaskName, Training
from tests.models import rows, tiny_dataset, tiny_network
from tests.workers.engine.tiny_tasks import bert_for, tokenizer_in, write
from workers.engine.evaluation import Evaluation, Summed, Unmeasured
from workers.engine.failures import EngineError
from workers.engine.recovery import Course, Standing, distilled_loss, learning_rate_curve, make_optimizer, train
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.structures.weights import linears_of
from workers.engine.tasks import TASKS, Settings, Task
from workers.engine.tasks.text_classification import TextClassification


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def case(tmp_path: Path) -> tuple[PreTrainedModel, Task]:
    data = tiny_dataset(tmp_path / "data", train=96, validation=32, test=8)
    network = bert_for("SequenceClassification", num_labels=2)
    return network, TextClassification(data, tokenizer_in(tmp_path / "model"), network, Settings(16))


def recipe(**parts: Any) -> Training:
    return TypeAdapter(Training).validate_python({"epochs": 3, "learning_rate": 3e-3, "batch_size": 16} | parts)


def run(network: PreTrainedModel, task: Task, course: Course, **more: Any) -> list[dict[str, Any]]:
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
    case: tuple[PreTrainedModel, Task], parts: dict[str, Any], bfloat16: bool, distilled: bool
) -> None:
    network, task = case
    start = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = copy.deepcopy(network) if distilled else None
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
    assert task.evaluate(network, "validation").loss in [pytest.approx(loss, rel=1e-4) for loss in losses]


def test_weights_get_no_worse_than_they_were(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    run(network, task, Course("baseline", recipe(), 3, 0))
    good = {name: value.clone() for name, value in network.state_dict().items()}
    ruinous = recipe(learning_rate=5.0, decay="constant", optimizer={"kind": "sgd", "momentum": 0.0})
    lines = run(network, task, Course("finetuning", ruinous, 1, 0))
    assert [line["data"]["epoch"] for line in lines if line["type"] == "event"] == [0]
    assert all(torch.equal(value, good[name]) for name, value in network.state_dict().items())


def test_zeros_stay_and_other_weights_move(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    with torch.no_grad():
        for linear in linears_of(network):
            weight_of(linear)[:, ::2] = 0
    before = [weight_of(linear).detach().clone() for linear in linears_of(network)]
    lines = run(network, task, Course("finetuning", recipe(), 3, 0, sparse=True))
    assert lines[-1]["data"]["epoch"] > 0
    for old, linear in zip(before, linears_of(network), strict=True):
        assert bool((weight_of(linear)[:, ::2] == 0).all())
        assert not torch.equal(weight_of(linear), old)


def test_a_loss_that_is_never_finite_is_the_users_to_mend(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    with torch.no_grad():
        weight_of(linears_of(network)[0])[0, 0] = math.nan
    lines = io.StringIO()
    with pytest.raises(EngineError) as caught:
        train(network, task, Course("finetuning", recipe(), 1, 0), Reporter(lines))
    assert (caught.value.code, caught.value.blame) == ("DIVERGED", "user")
    points = [json.loads(line) for line in lines.getvalue().splitlines() if "finetuning/loss" in line]
    assert points and all(point["value"] is None for point in points)


def test_a_batch_without_a_finite_loss_leaves_the_weights_alone(
    case: tuple[PreTrainedModel, Task], monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(("metric", "better"), [("accuracy", True), ("perplexity", False)])
def test_standings_go_by_the_first_metric_whichever_way_it_improves(metric: str, better: bool) -> None:
    def found(value: float) -> Evaluation:
        return Summed(1.0, [metric, "other"], np.array([[value, 0.5]]), lambda sums: sums.tolist())

    assert Standing.of(found(0.9)).beats(Standing.of(found(0.8))) is better
    assert Standing.of(Unmeasured(0.5, 1)).beats(Standing.of(Unmeasured(0.6, 1)))


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_learning_rate_rises_and_decays(decay: str, middle: float) -> None:
    rate = learning_rate_curve(recipe(learning_rate=1.0, decay=decay, warmup_ratio=0.2), 100)
    assert [rate(step) for step in (0, 9, 19, 20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert rate(60) == pytest.approx(middle)
    assert rate(99) == pytest.approx(1.0 if decay == "constant" else 0.0, abs=0.02)


def test_biases_and_norms_do_not_decay(case: tuple[PreTrainedModel, Task]) -> None:
    groups = make_optimizer(case[0], recipe(optimizer={"kind": "adamw", "weight_decay": 0.1})).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.dim() == 1 for parameter in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(case[0].parameters()))


def test_the_distilled_loss_is_the_papers(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    teacher = bert_for("SequenceClassification", num_labels=2, seed=3)
    batch = next(task.batches("train", 8))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        found = distilled_loss(network, teacher, task, batch, Distillation(temperature=2.0, weight=0.25))
        student, wanted = network(**inputs).logits, teacher(**inputs).logits
    target = (wanted / 2).softmax(-1)
    divergence = (target * (target.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    expected = 0.75 * functional.cross_entropy(student, batch["labels"]) + 0.25 * 4 * divergence
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        alone = distilled_loss(network, network, task, batch, Distillation(weight=1.0))
    assert float(alone) == pytest.approx(0.0, abs=1e-6)


# What criteria and regularizers attach


def test_a_penalty_is_part_of_the_loss(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    weight = weight_of(linears_of(network)[0])

    def penalty() -> Tensor:
        return 10 * weight.abs().sum()

    sizes: list[float] = []

    def observe(_progress: float) -> None:
        sizes.append(float(weight.detach().abs().sum()))

    constant = recipe(decay="constant", learning_rate=1e-2, epochs=1)
    lines = run(network, task, Course("finetuning", constant, 1, 0, penalty=penalty, observe=observe))
    first = next(line["value"] for line in lines if line.get("name") == "finetuning/loss")
    assert first == pytest.approx(10 * sizes[0], rel=0.1)
    assert sizes[-1] < 0.8 * sizes[0]


def test_observers_see_every_gradient_before_its_update(case: tuple[PreTrainedModel, Task]) -> None:
    network, task = case
    weight = weight_of(linears_of(network)[0])
    seen: list[tuple[float, bool, float]] = []

    def observe(progress: float) -> None:
        seen.append((progress, weight.grad is not None, float(weight.detach().sum())))

    start = float(weight.detach().sum())
    run(network, task, Course("finetuning", recipe(epochs=2), 2, 0, first_step=50, observe=observe))
    assert [progress for progress, _, _ in seen] == [pytest.approx(step / 12) for step in range(1, 13)]
    assert all(there for _, there, _ in seen)
    assert seen[0][2] == start and len({total for _, _, total in seen}) == 12


# Every task

ARCHITECTURES = {
    "text-classification": ("bert", "BertForSequenceClassification", {"num_labels": 2}),
    "question-answering": ("bert", "BertForQuestionAnswering", {}),
    "translation": ("bart", "BartForConditionalGeneration", {}),
    "token-classification": ("bert", "BertForTokenClassification", {"num_labels": 2}),
    "causal-lm": ("llama", "LlamaForCausalLM", {}),
    "masked-lm": ("bert", "BertForMaskedLM", {}),
    "sentence-embedding": ("bert", "BertModel", {}),
}


def row_of(task: str, text: str, label: int) -> dict[str, Any]:
    words = text.split()
    answer = {"text": [words[-1]], "answer_start": [len(text) - len(words[-1])]}
    made: dict[str, dict[str, Any]] = {
        "text-classification": {"text": text, "label": label},
        "question-answering": {"question": "the film", "context": text, "answers": answer},
        "translation": {"source": text, "target": " ".join(reversed(words))},
        "token-classification": {"tokens": words, "tags": [len(word) % 2 for word in words]},
        "causal-lm": {"text": text},
        "masked-lm": {"text": text},
        "sentence-embedding": {"text": text, "text_pair": words[0], "score": label},
    }
    return made[task]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_learns_with_and_without_a_teacher(name: TaskName, tmp_path: Path) -> None:
    family, architecture, changes = ARCHITECTURES[name]
    network = tiny_network(family, architecture, **changes)
    counts = {"train": 48, "validation": 24}
    splits = {split: [row_of(name, **row) for row in rows(count)] for split, count in counts.items()}
    task = TASKS[name](write(tmp_path / "data", **splits), tokenizer_in(tmp_path / "model"), network, Settings(16))
    task.teacher = copy.deepcopy(network)
    first = QUALITY_METRICS[name][0]
    for distillation in (None, Distillation(weight=0.2)):
        bfloat16 = distillation is None
        course = Course("finetuning", recipe(epochs=2, batch_size=8), 2, 0, bfloat16, distillation=distillation)
        lines = run(network, task, course, teacher=task.teacher)
        losses = [line["value"] for line in lines if line.get("name") == "finetuning/validation_loss"]
        assert min(losses[1:]) < losses[0]
        curves = {line["name"].removeprefix("finetuning/") for line in lines if line["type"] == "metric"}
        assert curves - {"loss", "validation_loss"} == (set() if first == "bleu" else {f"validation_{first}"})
