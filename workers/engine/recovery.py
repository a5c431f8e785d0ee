"""Recovery: training a network, first its head (`baseline`), later what pruning left of it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel

from service.specs import Distillation, Sgd, Training
from workers.engine.evaluation import quality
from workers.engine.failures import EngineError
from workers.engine.reporter import Reporter
from workers.engine.structures.weights import linears_of
from workers.engine.tasks import Batch, Task
from workers.engine.tasks.text_classification import logits_of

MAX_GRADIENT_NORM = 1.0
CURVE_POINTS = 500
"""About how many points a training curve has at most."""
TRAINING_COST = 3
"""What a step costs in forward passes: one forward, and a backward of twice its work."""
DIVERGED = "the loss is not finite; lower learning_rate or raise warmup_ratio"


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


@dataclass(frozen=True)
class Standing:
    """How a network does on `validation`; more accuracy is better, and of equals the lower loss."""

    accuracy: float
    loss: float

    def beats(self, other: "Standing") -> bool:
        """Whether to keep these weights rather than the other's; weights without a finite loss never."""
        if not math.isfinite(self.loss) or not math.isfinite(other.loss):
            return math.isfinite(self.loss)
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def train(
    network: PreTrainedModel, task: Task, course: Course, reporter: Reporter, teacher: PreTrainedModel | None = None
) -> int:
    """Trains in place and leaves the weights of the best epoch on `validation`; returns the number of the last step.

    The untrained weights count as epoch 0, so that fine-tuning never makes a network worse. With `distillation` the
    loss is `(1 - weight) * task + weight * T² * KL(teacher ‖ student)` at temperature T (Hinton et al., 2015). Raises
    EngineError DIVERGED when no batch of an epoch had a finite loss.
    """
    run = _Run(network, task, course, reporter, teacher)
    best, best_epoch, weights = run.validate(), 0, _copy(network)
    for epoch in range(1, course.epochs + 1):
        run.epoch()
        found = run.validate()
        if found.beats(best):
            best, best_epoch, weights = found, epoch, _copy(network)
    if not math.isfinite(best.loss):
        raise EngineError("DIVERGED", DIVERGED, blame="user")
    network.load_state_dict(weights)
    network.eval()
    message = f"Epoch {best_epoch} of {course.epochs} was the best on validation (0 is before training)."
    reporter.event("training.best", message, epoch=best_epoch, accuracy=best.accuracy)
    return run.step


class _Run:
    """One course under way."""

    def __init__(
        self, network: PreTrainedModel, task: Task, course: Course, reporter: Reporter, teacher: PreTrainedModel | None
    ) -> None:
        self.network, self.task, self.course, self.reporter, self.teacher = network, task, course, reporter, teacher
        self.step = course.first_step
        steps = course.epochs * math.ceil(task.rows("train") / course.recipe.batch_size)
        self.optimizer = make_optimizer(network, course.recipe)
        self.learning_rate = learning_rate_curve(course.recipe, steps)
        self.zeros = Zeros(network) if course.sparse else None
        self.generator = torch.Generator().manual_seed(course.seed)
        self.told_every = max(1, steps // CURVE_POINTS)
        self.losses: list[float] = []

    def epoch(self) -> None:
        """All rows once."""
        self.network.train()
        finite = False
        for batch in self.task.batches("train", self.course.recipe.batch_size, self.generator):
            value = self.update(batch)
            self.step += 1
            finite = finite or math.isfinite(value)
            self.tell(value)
            self.reporter.advance(len(batch["labels"]) * (TRAINING_COST + (self.course.distillation is not None)))
        if not finite:
            raise EngineError("DIVERGED", DIVERGED, blame="user")

    def update(self, batch: Batch) -> float:
        """One step; a batch whose loss or gradient is not finite is left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step - self.course.first_step)
        with _autocast(self.network, self.course.bfloat16):
            if self.course.distillation and self.teacher is not None:
                loss = distilled_loss(self.network, self.teacher, batch, self.course.distillation)
            else:
                loss = self.task.loss(self.network, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        value = float(loss.detach())
        if math.isfinite(value) and bool(norm.isfinite()):
            self.optimizer.step()
            if self.zeros is not None:
                self.zeros.restore()
        return value

    def tell(self, value: float) -> None:
        """The mean loss since the last point of the curve."""
        self.losses.append(value)
        if len(self.losses) == self.told_every:
            self.reporter.metric(f"{self.course.name}/loss", self.step, sum(self.losses) / len(self.losses))
            self.losses.clear()

    def validate(self) -> Standing:
        """Figures on `validation`, told as points of curves."""
        found = self.task.evaluate(self.network, "validation")
        standing = Standing(quality(found)["accuracy"], found["loss"])
        self.reporter.metric(f"{self.course.name}/validation_accuracy", self.step, standing.accuracy)
        self.reporter.metric(f"{self.course.name}/validation_loss", self.step, standing.loss)
        self.reporter.advance(self.task.rows("validation"))
        return standing


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
    """Learning rate at each step from 0: a linear rise over `warmup_ratio` of the steps, then the decay to zero."""
    rise = round(steps * recipe.warmup_ratio)

    def rate(step: int) -> float:
        if step < rise:
            return recipe.learning_rate * (step + 1) / rise
        left = (steps - step) / max(1, steps - rise)
        if recipe.decay == "constant":
            left = 1.0
        elif recipe.decay == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return recipe.learning_rate * left

    return rate


class Zeros:
    """Where the Linear layers hold zeros now, to be put back after every update."""

    def __init__(self, network: PreTrainedModel) -> None:
        self._masks = [(linear.weight, linear.weight.detach() != 0) for linear in linears_of(network)]

    @torch.no_grad()
    def restore(self) -> None:
        """Sets them to zero again."""
        for weight, mask in self._masks:
            weight.mul_(mask)
