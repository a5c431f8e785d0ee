"""Recovery: training a network, first its head (`baseline`), later what pruning left of it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel

from service.specs import LOWER_IS_BETTER, Distillation, Sgd, Training
from workers.engine.evaluation import Evaluation
from workers.engine.failures import EngineError
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.structures.weights import linears_of
from workers.engine.tasks import Batch, Task

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
    penalty: Callable[[], Tensor | None] | None = None
    """Added to the loss of every step."""
    observe: Callable[[float], None] | None = None
    """Told of every step, after the backward pass and before the update, by the share of the course in (0, 1]."""
    keep_last: bool = False
    """Whether the last weights stay, be they the best or not."""


@dataclass(frozen=True)
class Standing:
    """How a network does on `validation`: a higher score is better, and of equals the lower loss."""

    score: float
    loss: float

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Standing":
        """By the first metric, turned round where lower is better; by the loss alone where nothing was measured."""
        name, value = next(iter(evaluation.metrics().items()), ("", 0.0))
        return cls(-value if name in LOWER_IS_BETTER else value, evaluation.loss)

    def beats(self, other: "Standing") -> bool:
        """Whether to keep these weights rather than the other's; weights without a finite loss never."""
        if not math.isfinite(self.loss) or not math.isfinite(other.loss):
            return math.isfinite(self.loss)
        return (self.score, -self.loss) > (other.score, -other.loss)


def train(
    network: PreTrainedModel, task: Task, course: Course, reporter: Reporter, teacher: PreTrainedModel | None = None
) -> int:
    """Trains in place and leaves the weights of the best epoch on `validation`; returns the number of the last step.

    The untrained weights count as epoch 0, so that fine-tuning never makes a network worse; with `keep_last` the last
    epoch's stay in any case. With `distillation` the
    loss is `(1 - weight) * task + weight * divergence` from the teacher (Hinton et al., 2015). Raises EngineError
    DIVERGED when no batch of an epoch had a finite loss.
    """
    run = _Run(network, task, course, reporter, teacher)
    best, best_epoch, weights = run.validate(), 0, _copy(network)
    for epoch in range(1, course.epochs + 1):
        run.epoch()
        found = run.validate()
        if course.keep_last or found.beats(best):
            best, best_epoch, weights = found, epoch, _copy(network)
    if not math.isfinite(best.loss):
        raise EngineError("DIVERGED", DIVERGED, blame="user")
    network.load_state_dict(weights)
    network.zero_grad(set_to_none=True)
    network.eval()
    message = f"Epoch {best_epoch} of {course.epochs} was the best on validation (0 is before training)."
    reporter.event("training.best", message, epoch=best_epoch, score=best.score, loss=best.loss)
    return run.step


class _Run:
    """One course under way."""

    def __init__(
        self, network: PreTrainedModel, task: Task, course: Course, reporter: Reporter, teacher: PreTrainedModel | None
    ) -> None:
        self.network, self.task, self.course, self.reporter, self.teacher = network, task, course, reporter, teacher
        self.step = course.first_step
        self.steps = course.epochs * math.ceil(task.rows("train") / course.recipe.batch_size)
        self.optimizer = make_optimizer(network, course.recipe)
        self.learning_rate = learning_rate_curve(course.recipe, self.steps)
        self.zeros = Zeros(network) if course.sparse else None
        self.generator = torch.Generator().manual_seed(course.seed)
        self.told_every = max(1, self.steps // CURVE_POINTS)
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
            self.reporter.advance(self.task.size(batch) * (TRAINING_COST + (self.course.distillation is not None)))
        if not finite:
            raise EngineError("DIVERGED", DIVERGED, blame="user")

    def update(self, batch: Batch) -> float:
        """One step; a batch whose loss or gradient is not finite is left out."""
        done = self.step - self.course.first_step
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(done)
        with _autocast(self.network, self.course.bfloat16):
            loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        value = float(loss.detach())
        if math.isfinite(value) and bool(norm.isfinite()):
            if self.course.observe is not None:
                self.course.observe((done + 1) / self.steps)
            self.optimizer.step()
            if self.zeros is not None:
                self.zeros.restore()
        return value

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, that of a teacher mixed in, a penalty added."""
        course = self.course
        if course.distillation and self.teacher is not None:
            loss = distilled_loss(self.network, self.teacher, self.task, batch, course.distillation)
        else:
            loss = self.task.loss(self.network, batch)
        penalty = course.penalty() if course.penalty is not None else None
        return loss if penalty is None else loss + penalty

    def tell(self, value: float) -> None:
        """The mean loss since the last point of the curve."""
        self.losses.append(value)
        if len(self.losses) == self.told_every:
            self.reporter.metric(f"{self.course.name}/loss", self.step, sum(self.losses) / len(self.losses))
            self.losses.clear()

    def validate(self) -> Standing:
        """Figures on `validation`, told as points of curves."""
        found = self.task.validate(self.network)
        figures = [("loss", found.loss), *list(found.metrics().items())[:1]]
        for name, value in figures:
            self.reporter.metric(f"{self.course.name}/validation_{name}", self.step, value)
        self.reporter.advance(self.task.rows("validation"))
        return Standing.of(found)


def _autocast(network: PreTrainedModel, bfloat16: bool) -> AbstractContextManager[object]:
    return torch.autocast(network.device.type, torch.bfloat16) if bfloat16 else nullcontext()


def distilled_loss(
    network: PreTrainedModel, teacher: PreTrainedModel, task: Task, batch: Batch, spec: Distillation
) -> Tensor:
    """Mix of the task's loss and the divergence from the teacher's softened outputs (Hinton et al., 2015)."""
    student = task.logits(network, batch)
    with torch.no_grad():
        target = task.logits(teacher, batch)
    divergence = task.divergence(student, target, spec.temperature)
    return (1 - spec.weight) * task.loss_of(student, batch) + spec.weight * divergence


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
        weights = [weight_of(linear) for linear in linears_of(network)]
        self._masks = [(weight, weight.detach() != 0) for weight in weights]

    @torch.no_grad()
    def restore(self) -> None:
        """Sets them to zero again."""
        for weight, mask in self._masks:
            weight.mul_(mask)
