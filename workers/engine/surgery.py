"""Surgery: one cut of a spec, from scores to a smaller network."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import DATA_CRITERIA, Cut
from workers.engine import allocation
from workers.engine.criteria import CRITERIA, Criterion
from workers.engine.structures import STRUCTURES, Group, Structure, gated, linears_of
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
    network: PreTrainedModel, cut: Cut, share: float, anatomy: Anatomy, task: Task | None, generator: torch.Generator
) -> dict[str, Any]:
    """Scores, allocates and cuts, in place. `share` is the part of the original units gone after this round.

    Returns `{"structure", "criterion", "removed", "of"}`, counted in units.
    """
    structure = STRUCTURES[cut.structure]
    groups = structure.groups(network)
    criterion = CRITERIA[cut.criterion.kind](cut.criterion, structure, generator)
    scores = score(network, structure, groups, criterion, cut, task)
    original = anatomy.original_units(cut.structure, groups)
    keep = _allocate(network, cut, share, groups, scores, original, criterion.comparable)
    if cut.structure == "layers":
        anatomy.kept_layers = [i for i, kept in zip(anatomy.kept_layers, keep[0].tolist(), strict=True) if kept]
    structure.cut(network, keep)
    kept = sum(int(mask.sum()) for mask in keep)
    return {
        "structure": cut.structure,
        "criterion": cut.criterion.kind,
        "removed": sum(original) - kept,
        "of": sum(original),
    }


def score(
    network: PreTrainedModel,
    structure: Structure,
    groups: list[Group],
    criterion: Criterion,
    cut: Cut,
    task: Task | None,
) -> list[Tensor]:
    """One tensor of (units,) per group; rows are read where the criterion needs them."""
    criterion.attach(network, groups)
    if cut.criterion.kind in DATA_CRITERIA:
        assert task is not None  # the door refuses such a job without a data set
        network.eval()
        with gated(network, structure, criterion.gates):
            for batch in task.sample(getattr(cut.criterion, "samples", 512), SCORING_BATCH):
                network.zero_grad(set_to_none=True)
                loss = task.loss(network, batch)
                extra = criterion.extra_loss()
                (loss if extra is None else loss + extra).backward()
                criterion.advance(len(batch["labels"]))
        network.zero_grad(set_to_none=True)
    return [values.cpu() for values in criterion.scores()]


def _allocate(
    network: PreTrainedModel,
    cut: Cut,
    share: float,
    groups: list[Group],
    scores: list[Tensor],
    original: list[int],
    comparable: bool,
) -> list[Tensor]:
    if cut.structure == "weights":
        scores = [_zeros_first(group, values) for group, values in zip(groups, scores, strict=True)]
        if cut.pattern == "2:4":
            columns = [linear.in_features for linear in linears_of(network)]
            masks = [allocation.two_of_four(v, c) for v, c in zip(scores, columns, strict=True)]
            return [_to_device(mask, group) for mask, group in zip(masks, groups, strict=True)]
    keep = [allocation.to_keep(units, share) for units in original]
    keep = [min(wanted, group.units) for wanted, group in zip(keep, groups, strict=True)]
    if cut.scope == "global":
        total = min(allocation.to_keep(sum(original), share), sum(group.units for group in groups))
        masks = allocation.ranked(scores, total, comparable=comparable)
    else:
        masks = allocation.uniform(scores, keep)
    return [_to_device(mask, group) for mask, group in zip(masks, groups, strict=True)]


def _zeros_first(group: Group, scores: Tensor) -> Tensor:
    """Weights that an earlier round set to zero stay zero, whatever the criterion says of them."""
    (weight, _), *_ = group.parts
    return scores.masked_fill(weight.detach().flatten().cpu() == 0, -1.0)


def _to_device(mask: Tensor, group: Group) -> Tensor:
    return mask.to(group.parts[0][0].device) if group.parts else mask
