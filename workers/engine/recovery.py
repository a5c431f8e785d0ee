"""Recovery: training a network, first its head (`baseline`), later what pruning left of it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from service.specs import Distillation, Sgd, Training
from workers.engine.evaluation import quality
from workers.engine.failures import EngineError
from workers.engine.reporter import Reporter
from workers.engine.structures import linears_of
from workers.engine.tasks import Batch, Task
from workers.engine.tasks.text_classification import logits_of

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Course:
    """One stretch of training: `epochs` of the recipe, told under `name`, from step `first_step` of its curve."""

    name: str
    recipe: Training
    epochs: int
    seed: int
    bfloat16: bool = False
    sparse: bool = False
    """Whether zeros inside the transformer layers must stay zero."""
    distillation: Distillation | None = None
    first_step: int = 0


def train(
    network: PreTrainedModel, task: Task, course: Course, reporter: Reporter, teacher: PreTrainedModel | None = None
) -> int:
    """Trains in place and leaves the weights of the best epoch on `validation`; returns the number of steps.

    With `distillation` the loss is `(1 - weight) * task + weight * T² * KL(teacher ‖ student)` at temperature T
    (Hinton et al., 2015). Raises EngineError DIVERGED when no batch of an epoch had a finite loss.
    """
    steps = course.epochs * math.ceil(task.rows("train") / course.recipe.batch_size)
    optimizer = make_optimizer(network, course.recipe)
    schedule = LambdaLR(optimizer, learning_rate_curve(course.recipe, steps))
    zeros = Zeros(network) if course.sparse else None
    generator = torch.Generator().manual_seed(course.seed)
    best, best_weights, step = -1.0, None, course.first_step
    for epoch in range(course.epochs):
        network.train()
        finite = 0
        for batch in task.batches("train", course.recipe.batch_size, generator):
            value = _step(network, task, batch, course, teacher, optimizer, zeros)
            schedule.step()
            step += 1
            finite += math.isfinite(value)
            reporter.metric(f"{course.name}/loss", step, value)
            reporter.advance()
        if not finite:
            raise EngineError("DIVERGED", "the loss is not finite; lower learning_rate", blame="user")
        score = _validate(network, task, course.name, step, reporter)
        if score > best:
            best = score
            best_weights = _copy(network) if epoch + 1 < course.epochs else None
    if best_weights is not None:
        network.load_state_dict(best_weights)
    network.eval()
    return step


def _step(
    network: PreTrainedModel,
    task: Task,
    batch: Batch,
    course: Course,
    teacher: PreTrainedModel | None,
    optimizer: Optimizer,
    zeros: "Zeros | None",
) -> float:
    """One update; a batch whose loss is not finite is left out."""
    with _autocast(network, course.bfloat16):
        if course.distillation and teacher is not None:
            loss = distilled_loss(network, teacher, batch, course.distillation)
        else:
            loss = task.loss(network, batch)
    value = loss.item()
    optimizer.zero_grad(set_to_none=True)
    if math.isfinite(value):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        if zeros is not None:
            zeros.restore()
    return value


def _autocast(network: PreTrainedModel, bfloat16: bool) -> AbstractContextManager[object]:
    return torch.autocast(network.device.type, torch.bfloat16) if bfloat16 else nullcontext()


def distilled_loss(network: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, spec: Distillation) -> Tensor:
    """Mix of the task's cross-entropy and the divergence from the teacher's softened outputs (Hinton et al., 2015)."""
    student = logits_of(network, batch).float()
    with torch.no_grad():
        target = logits_of(teacher, batch).float()
    hard = functional.cross_entropy(student, batch["labels"].to(student.device))
    heat = spec.temperature
    soft = functional.kl_div(
        functional.log_softmax(student / heat, -1),
        functional.log_softmax(target / heat, -1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - spec.weight) * hard + spec.weight * heat * heat * soft


def _validate(network: PreTrainedModel, task: Task, name: str, step: int, reporter: Reporter) -> float:
    found = task.evaluate(network, "validation")
    accuracy = quality(found)["accuracy"]
    reporter.metric(f"{name}/validation_accuracy", step, accuracy)
    reporter.metric(f"{name}/validation_loss", step, found["loss"])
    return accuracy


def _copy(network: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def make_optimizer(network: PreTrainedModel, recipe: Training) -> Optimizer:
    """The recipe's optimizer; biases and norms are not decayed."""
    chosen = recipe.optimizer
    matrices = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if isinstance(chosen, Sgd):
        return SGD(groups, lr=recipe.learning_rate, momentum=chosen.momentum, nesterov=chosen.nesterov)
    return AdamW(groups, lr=recipe.learning_rate)


def learning_rate_curve(recipe: Training, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate per step: a linear rise over `warmup_ratio` of the steps, then the decay."""
    rise = int(steps * recipe.warmup_ratio)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        left = (steps - step) / max(1, steps - rise)
        if recipe.decay == "linear":
            return max(0.0, left)
        if recipe.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - min(1.0, max(0.0, left)))))
        return 1.0

    return factor


class Zeros:
    """Where the Linear layers hold zeros now, to be put back after every update."""

    def __init__(self, network: PreTrainedModel) -> None:
        self._masks = [(linear.weight, linear.weight.detach() != 0) for linear in linears_of(network)]

    @torch.no_grad()
    def restore(self) -> None:
        """Sets them to zero again."""
        for weight, mask in self._masks:
            weight.mul_(mask)
