"""Diagonal of the empirical Fisher information (Kwon et al., 2022; for single weights Theis et al., 2018)."""

import torch
from torch import Tensor

from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.taylor import Taylor, WeightTaylor
from workers.engine.structures.structure import Structure


class Fisher(Taylor):
    """Second-order estimate of what closing a unit's gate costs: the square of the gate's gradient, row by row."""

    def advance(self, progress: float) -> None:
        """Adds the rows of the batch."""
        for found, gate in zip(self._sums, self._gates, strict=True):
            found.add_(gate.gradients.float().square().sum(0).cpu())


class WeightFisher(WeightTaylor):
    """The same for single weights: the square of weight times gradient, summed over batches."""

    def advance(self, progress: float) -> None:
        """Adds the batch."""
        for found, group in zip(self._sums, self.groups, strict=True):
            found.add_(group.totals(_squared_change))


def _squared_change(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else (weight.detach() * weight.grad).square()


def fisher(spec: object, structure: Structure, generator: torch.Generator) -> Criterion:
    """The form that fits the structure: a gate for every single weight would cost a gradient per row and weight."""
    form = WeightFisher if structure.name == "weights" else Fisher
    return form(spec, structure, generator)  # type: ignore[arg-type]
