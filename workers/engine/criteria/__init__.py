"""Criteria: what a unit is worth. The lowest scores are cut first.

A large weight or a large gradient says that the network leans on a unit, so such units stay: cutting the largest first
loses accuracy in every published comparison and in ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Criterion as CriterionSpec
from service.specs import Magnitude as MagnitudeSpec
from workers.engine.families import family_of
from workers.engine.structures import Gate, Group, Structure


class Criterion(Protocol):
    """Scores the units of one structure."""

    gates: list[Gate]
    """Gates that must be in the forward pass while rows are read; none for criteria that need none."""
    comparable: bool
    """Whether scores of different groups are in one unit; otherwise a global ranking divides by the group's mean."""

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Get ready for the rows that follow."""

    def extra_loss(self) -> Tensor | None:
        """A penalty to add to the task's loss."""

    def advance(self, rows: int) -> None:
        """The gradients of one batch of `rows` rows, of its mean loss, are there."""

    def scores(self) -> list[Tensor]:
        """One tensor of (units,) per group."""


class _Base:
    comparable = True

    def __init__(self, spec: CriterionSpec, structure: Structure, generator: torch.Generator) -> None:
        self.spec, self.structure, self.generator = spec, structure, generator
        self.gates: list[Gate] = []
        self.groups: Sequence[Group] = ()

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        self.groups = [_with_layer_parts(network, group) for group in groups]

    def extra_loss(self) -> Tensor | None:
        return None

    def advance(self, rows: int) -> None:
        return None


def _with_layer_parts(network: PreTrainedModel, group: Group) -> Group:
    """Whole layers have parameters of many shapes: stacked per layer, they divide by units like any other part."""
    if group.parts:
        return group
    layers = [torch.cat([p.flatten() for p in layer.parameters()]) for layer in family_of(network).stack(network)]
    return (
        Group(group.layer, group.units, ((torch.stack(layers).detach(), 0),))
        if (len({len(layer) for layer in layers}) == 1)
        else group
    )


class Magnitude(_Base):
    """Mean p-norm of a unit's weights (Han et al., 2015; Li et al., 2017)."""

    comparable = False

    def scores(self) -> list[Tensor]:
        """Norms over the unit's weights, divided by their number (norm 1) or its root (norm 2)."""
        assert isinstance(self.spec, MagnitudeSpec)
        return [_norms(group, [part.detach() for part, _ in group.parts], self.spec.norm) for group in self.groups]


def _norms(group: Group, values: list[Tensor], norm: int) -> Tensor:
    runs = torch.cat(group.per_unit(values), dim=1).float()
    norms: Tensor = runs.norm(norm, dim=1) / runs.shape[1] ** (1 / norm)
    return norms


class Random(_Base):
    """Chance under the job's seed: the control."""

    def scores(self) -> list[Tensor]:
        """Uniform numbers."""
        return [torch.rand(group.units, generator=self.generator) for group in self.groups]


class Gradient(_Base):
    """Root mean square of the loss gradient of a unit's weights, averaged over batches."""

    comparable = False

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Sums start at zero."""
        self.groups = groups
        self.network = network
        self._sums = [torch.zeros(group.units) for group in groups]

    def advance(self, rows: int) -> None:
        """Adds the norms of the batch's gradients."""
        for index, group in enumerate(self.groups):
            if group.parts:
                self._sums[index] += _norms(group, [_gradient(part) for part, _ in group.parts], 2).cpu() * rows
            else:
                self._sums[index] += _layer_gradients(self.network).cpu() * rows

    def scores(self) -> list[Tensor]:
        """The sums."""
        return self._sums


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _layer_gradients(network: PreTrainedModel) -> Tensor:
    stack = family_of(network).stack(network)
    squares = [
        torch.stack([_gradient(p).float().square().mean() for p in layer.parameters()]).mean() for layer in stack
    ]
    return torch.stack(squares).sqrt()


class Taylor(_Base):
    """First-order change of the loss when a unit's gate closes (Molchanov et al., 2019; Michel et al., 2019).

    The gate's gradient equals the sum of weight times gradient over the unit. Its size is taken per row and then
    averaged, so that rows of opposite sign do not cancel. Single weights use weight times gradient per batch.
    """

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """One open gate per group, unless the units are single weights."""
        self.groups = groups
        self._sums = [torch.zeros(group.units) for group in groups]
        if self.structure.name != "weights":
            self.gates = [Gate(torch.ones(group.units), learn=True) for group in groups]

    def advance(self, rows: int) -> None:
        """Adds the batch: the loss is a mean, so a row's own gradient is `rows` times what it left in its gate."""
        if self.gates:
            for index, gate in enumerate(self.gates):
                self._sums[index] += gate.take_gradients().float().abs().sum(0).cpu() * rows
            return
        for index, group in enumerate(self.groups):
            (weight, _), *_ = group.parts
            self._sums[index] += (weight.detach() * _gradient(weight)).float().abs().flatten().cpu() * rows

    def scores(self) -> list[Tensor]:
        """The sums."""
        return self._sums


class Similarity(_Base):
    """Block influence: one minus the mean cosine between what enters a layer and what leaves it (Men et al., 2024)."""

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches every layer's input and output."""
        self.groups = groups
        self._sums = torch.zeros(groups[0].units, dtype=torch.float64)
        self._tokens = 0
        self._handles = [
            layer.register_forward_hook(self._hook(index))
            for index, layer in enumerate(family_of(network).stack(network))
        ]

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            cosine = torch.cosine_similarity(args[0].detach().float(), output.detach().float(), dim=-1)
            self._sums[index] += (1 - cosine).sum().item()
            self._tokens += cosine.numel() if index == 0 else 0

        return hook

    def scores(self) -> list[Tensor]:
        """One influence per layer."""
        for handle in self._handles:
            handle.remove()
        return [(self._sums / max(1, self._tokens)).float()]


CRITERIA: dict[str, Callable[[Any, Structure, torch.Generator], Criterion]] = {
    "magnitude": Magnitude,
    "gradient": Gradient,
    "taylor": Taylor,
    "similarity": Similarity,
    "random": Random,
}
