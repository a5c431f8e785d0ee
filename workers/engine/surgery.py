"""Surgery: one cut of a spec, from scores to a smaller network."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Cut
from workers.engine import allocation
from workers.engine.criteria import CRITERIA
from workers.engine.criteria.criterion import Criterion
from workers.engine.failures import EngineError
from workers.engine.recovery import TRAINING_COST
from workers.engine.reporter import Reporter
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group
from workers.engine.tasks import Task

SCORING_BATCH = 32


@dataclass
class Anatomy:
    """What the network looked like before the first cut, and which of its layers are left.

    Ratios are shares of the original units, so that rounds add up to what was asked.
    """

    widths: dict[str, list[int]]
    layers: int
    kept_layers: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, network: PreTrainedModel) -> "Anatomy":
        """The anatomy of an uncut network."""
        widths = {
            name: [group.units for group in STRUCTURES[name].groups(network)]
            for name in ("attention_heads", "ffn_neurons")
        }
        layers = len(widths["ffn_neurons"])
        return cls(widths, layers, list(range(layers)))

    def original_units(self, structure: str, groups: list[Group]) -> list[int]:
        """Units that each of today's groups had at the start."""
        if structure == "layers":
            return [self.layers]
        if structure == "weights":
            return [group.units for group in groups]
        return [self.widths[structure][self.kept_layers[group.layer]] for group in groups]


def apply_cut(
    network: PreTrainedModel,
    cut: Cut,
    share: float,
    anatomy: Anatomy,
    task: Task | None,
    generator: torch.Generator,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores, allocates and cuts, in place. `share` is the part of the original units gone after this round.

    Returns `{"structure", "criterion", "removed", "of"}`, counted in units.
    """
    structure = STRUCTURES[cut.structure]
    groups = structure.groups(network)
    original = anatomy.original_units(cut.structure, groups)
    criterion = CRITERIA[cut.criterion.kind](cut.criterion, structure, generator)
    scores = score(network, criterion, groups, task, getattr(cut.criterion, "samples", 0), reporter)
    reporter.phase("pruning")
    if cut.structure == "weights":
        keep = _allocate_weights(cut, share, groups, scores)
    else:
        keep = allocation.allocate(
            scores, original, share, ranked=cut.scope == "global", comparable=criterion.comparable
        )
    structure.cut(network, keep)
    if cut.structure == "layers":
        anatomy.kept_layers = [i for i, kept in zip(anatomy.kept_layers, keep[0].tolist(), strict=True) if kept]
    removed = sum(original) - sum(int(mask.sum()) for mask in keep)
    done: dict[str, Any] = {
        "structure": cut.structure,
        "criterion": cut.criterion.kind,
        "removed": removed,
        "of": sum(original),
    }
    reporter.event("pruning.cut", f"Cut {removed} of {sum(original)} {cut.structure} by {cut.criterion.kind}.", **done)
    return done


def _allocate_weights(cut: Cut, share: float, groups: list[Group], scores: list[Tensor]) -> list[Tensor]:
    """Single weights are all of one size, so that their raw scores are ranked; zeros are cut already and stay so."""
    weights = [group.parts[0].parameter.detach().cpu() for group in groups]
    scores = [values.masked_fill(weight.flatten() == 0, -1.0) for values, weight in zip(scores, weights, strict=True)]
    if cut.pattern == "2:4":
        kept = 4 - allocation.nearest(4 * share)
        return [allocation.n_of_four(v, weight.shape[1], kept) for v, weight in zip(scores, weights, strict=True)]
    return allocation.exact(scores, share, ranked=cut.scope == "global")


def score(
    network: PreTrainedModel,
    criterion: Criterion,
    groups: list[Group],
    task: Task | None,
    samples: int,
    reporter: Reporter,
) -> list[Tensor]:
    """One tensor of (units,) per group; `samples` rows are read where the criterion needs them.

    Raises EngineError NOT_FINITE where the network is broken and its units cannot be told apart.
    """
    criterion.attach(network, groups)
    if criterion.needs != "nothing":
        assert task is not None  # the door refuses such a job without a data set
        network.eval()
        # A gate's gradient does not need those of the weights, which are a third of the work.
        network.requires_grad_(criterion.needs == "gradients")
        _read(network, criterion, task, task.sample_size(samples), reporter)
        network.requires_grad_(True)
        network.zero_grad(set_to_none=True)
    scores = criterion.scores()
    if not all(bool(values.isfinite().all()) for values in scores):
        raise EngineError("NOT_FINITE", "the network's scores are not finite: its weights are broken", blame="user")
    return scores


def _read(network: PreTrainedModel, criterion: Criterion, task: Task, samples: int, reporter: Reporter) -> None:
    seen = 0
    for batch in task.sample(samples, SCORING_BATCH):
        rows = len(batch["labels"])
        network.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(criterion.needs != "activations"):
            # The sum over rows, so that what reaches a row's gates is that row's own gradient.
            loss = task.loss(network, batch) * rows
        if loss.requires_grad:
            extra = criterion.extra_loss()
            (loss if extra is None else loss + extra).backward()
        seen += rows
        criterion.advance(seen / samples)
        reporter.advance(TRAINING_COST * rows)
