"""Recovery: training a network, first its head (`baseline`), later what pruning left of it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel

from service.specs import LOWER_IS_BETTER, Distillation, Sgd, Training
from workers.engine.evaluation import Evaluation
from workers.engine.failures import EngineError
from workers.engine.micro_batches import accumulate, accumulate_jointly
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.snapshot import Values, copy_of, moments_of, put_back, put_back_moments
from workers.engine.structures.weights import linears_of
from workers.engine.tasks import Batch, Task
from workers.engine.tasks.task import inputs_in

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
    parts: int = 1
    """Into how many micro-batches every batch is divided."""
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


@dataclass(frozen=True)
class Halfway:
    """A course between two batches: all that it takes to go on, but for the network's own weights and PyTorch's chance.

    `counts` are JSON values; `best` are the weights to beat.
    """

    counts: dict[str, Any]
    values: Values
    moments: Values
    best: Values


class Keeper(Protocol):
    """Who keeps courses that are under way."""

    def halfway(self) -> Halfway | None:
        """Where the course to go on with stood, once; None where it begins."""

    def between_batches(self, tell: Callable[[], Halfway]) -> None:
        """Called after every batch and every validation, when `tell` says where the course stands."""


def train(
    network: PreTrainedModel,
    task: Task,
    course: Course,
    reporter: Reporter,
    teacher: PreTrainedModel | None = None,
    keeper: Keeper | None = None,
) -> int:
    """Trains in place and leaves the weights of the best epoch on `validation`; returns the number of the last step.

    The untrained weights count as epoch 0, so that fine-tuning never makes a network worse; with `keep_last` the last
    epoch's stay in any case. With `distillation` the
    loss is `(1 - weight) * task + weight * divergence` from the teacher (Hinton et al., 2015). Raises EngineError
    DIVERGED when no batch of an epoch had a finite loss.
    """
    run = _Run(network, task, course, reporter, teacher, keeper)
    if not run.go_on():
        run.judge()
    while run.epoch <= course.epochs:
        run.read_rows()
        run.judge()
    if not math.isfinite(run.best.loss):
        raise EngineError("DIVERGED", DIVERGED, blame="user")
    put_back(network, run.weights)
    network.zero_grad(set_to_none=True)
    network.eval()
    message = f"Epoch {run.best_epoch} of {course.epochs} was the best on validation (0 is before training)."
    reporter.event("training.best", message, epoch=run.best_epoch, score=run.best.score, loss=run.best.loss)
    return run.step


class _Run:
    """One course under way."""

    def __init__(
        self,
        network: PreTrainedModel,
        task: Task,
        course: Course,
        reporter: Reporter,
        teacher: PreTrainedModel | None,
        keeper: Keeper | None,
    ) -> None:
        self.network, self.task, self.course, self.reporter, self.teacher = network, task, course, reporter, teacher
        self.keeper = keeper
        self.epoch, self.batch, self.finite = 0, 0, False
        """The epoch under way, how many of its batches are done, and whether any of them had a finite loss."""
        self.best, self.best_epoch, self.weights = Standing(-math.inf, math.nan), 0, Values()
        self.step = course.first_step
        self.steps = course.epochs * math.ceil(task.rows("train") / course.recipe.batch_size)
        self.optimizer = make_optimizer(network, course.recipe)
        self.learning_rate = learning_rate_curve(course.recipe, self.steps)
        self.zeros = Zeros(network) if course.sparse else None
        self.generator = torch.Generator().manual_seed(course.seed)
        self.epoch_chance = self.generator.get_state()
        self.told_every = max(1, self.steps // CURVE_POINTS)
        self.losses: list[float] = []

    def go_on(self) -> bool:
        """Takes up a course that was interrupted; False where there is none."""
        halfway = None if self.keeper is None else self.keeper.halfway()
        if halfway is None:
            return False
        for name, value in halfway.counts.items():
            setattr(self, name, value)
        put_back_moments(self.optimizer, halfway.moments)
        self.weights, values = halfway.best, halfway.values
        self.best = Standing(*values["best"].tolist())
        self.losses = values["losses"].tolist()
        self.epoch_chance = values["epoch_chance"].clone()
        self.generator.set_state(self.epoch_chance)
        if self.zeros is not None:
            self.zeros.put_back(values)
        return True

    def tell_halfway(self) -> Halfway:
        """Where it stands; numbers that need not be finite are tensors, for JSON has no such."""
        names = ("epoch", "batch", "finite", "step", "best_epoch")
        values = {
            "best": torch.tensor([self.best.score, self.best.loss], dtype=torch.float64),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "epoch_chance": self.epoch_chance,
        }
        zeros = {} if self.zeros is None else self.zeros.masks()
        return Halfway(
            {name: getattr(self, name) for name in names}, values | zeros, moments_of(self.optimizer), self.weights
        )

    def pause(self) -> None:
        """The moment to keep what is done."""
        if self.keeper is not None:
            self.keeper.between_batches(self.tell_halfway)

    def read_rows(self) -> None:
        """All rows once, or those that an interrupted epoch left."""
        self.network.train()
        batches = self.task.batches("train", self.course.recipe.batch_size, self.generator)
        # Batches that are done are made again, as they draw on the generator.
        for batch in islice(batches, self.batch, None):
            value = self.update(batch)
            self.step, self.batch = self.step + 1, self.batch + 1
            self.finite = self.finite or math.isfinite(value)
            self.tell(value)
            self.reporter.advance(self.task.size(batch) * (TRAINING_COST + (self.course.distillation is not None)))
            self.pause()
        if not self.finite:
            raise EngineError("DIVERGED", DIVERGED, blame="user")

    def judge(self) -> None:
        """Ends an epoch: its weights are kept where they are the best so far."""
        found = self.validate()
        if self.epoch == 0 or self.course.keep_last or found.beats(self.best):
            self.best, self.best_epoch, self.weights = found, self.epoch, copy_of(self.network)
        self.epoch, self.batch, self.finite = self.epoch + 1, 0, False
        self.epoch_chance = self.generator.get_state()
        self.pause()

    def update(self, batch: Batch) -> float:
        """One step; a batch whose loss or gradient is not finite is left out."""
        done = self.step - self.course.first_step
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(done)
        self.optimizer.zero_grad(set_to_none=True)
        value = self.gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        if math.isfinite(value) and bool(norm.isfinite()):
            if self.course.observe is not None:
                self.course.observe((done + 1) / self.steps)
            self.optimizer.step()
            if self.zeros is not None:
                self.zeros.restore()
        return value

    def gradients(self, batch: Batch) -> float:
        """Leaves them with the parameters; returns the loss."""
        parts = self.course.parts
        if parts == 1:
            with self.autocast():
                loss, penalty = self.loss(batch), self.penalty()
                loss = loss if penalty is None else loss + penalty
            loss.backward()
            return float(loss.detach())
        if self.task.joint:
            value = accumulate_jointly(inputs_in(batch, self.network), parts, self.outputs, partial(self.judged, batch))
        else:
            value = accumulate(batch, parts, self.loss)
        with self.autocast():
            penalty = self.penalty()
        if penalty is None:
            return value
        penalty.backward()
        return value + float(penalty.detach())

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, that of a teacher mixed in."""
        distillation = self.course.distillation
        with self.autocast():
            if distillation is None or self.teacher is None:
                return self.task.loss(self.network, batch)
            return distilled_loss(self.network, self.teacher, self.task, batch, distillation)

    def outputs(self, batch: Batch) -> Tensor:
        """What the network says."""
        with self.autocast():
            return self.task.logits(self.network, batch)

    def judged(self, batch: Batch, student: Tensor) -> Tensor:
        """The loss, given the network's outputs."""
        distillation = self.course.distillation
        with self.autocast():
            if distillation is None or self.teacher is None:
                return self.task.loss_of(student, batch)
            return mixed_loss(student, self.teacher, self.task, batch, distillation)

    def penalty(self) -> Tensor | None:
        """What the course adds to the loss of every step."""
        return None if self.course.penalty is None else self.course.penalty()

    def autocast(self) -> AbstractContextManager[object]:
        """What forward passes run under."""
        return torch.autocast(self.network.device.type, torch.bfloat16) if self.course.bfloat16 else nullcontext()

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


def distilled_loss(
    network: PreTrainedModel, teacher: PreTrainedModel, task: Task, batch: Batch, spec: Distillation
) -> Tensor:
    """Mix of the task's loss and the divergence from the teacher's softened outputs (Hinton et al., 2015)."""
    return mixed_loss(task.logits(network, batch), teacher, task, batch, spec)


def mixed_loss(student: Tensor, teacher: PreTrainedModel, task: Task, batch: Batch, spec: Distillation) -> Tensor:
    """The same, given the network's outputs."""
    with torch.no_grad():
        target = task.logits(teacher, batch)
    divergence = task.divergence(student, target, spec.temperature)
    return (1 - spec.weight) * task.loss_of(student, batch) + spec.weight * divergence


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

    def masks(self) -> Values:
        """Where no zeros are, by numbers of the layers."""
        return {f"mask.{number}": mask for number, (_, mask) in enumerate(self._masks)}

    def put_back(self, values: Values) -> None:
        """Takes the `masks` of others: a weight may have become zero since."""
        self._masks = [
            (weight, values[f"mask.{number}"].to(weight.device)) for number, (weight, _) in enumerate(self._masks)
        ]
