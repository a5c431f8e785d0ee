"""Gradient: how steep the loss is in a unit's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.structures.structure import Group


class Gradient(Criterion):
    """Root mean square of the loss gradient over a unit's weights, summed over batches.

    Units whose gradient is large stay: the loss leans on them. (Cutting the largest first instead is at times taught;
    it loses accuracy.)
    """

    needs = "gradients"
    comparable = False

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Sums start at zero."""
        self.groups = groups
        self._sizes = [group.totals(torch.ones_like) for group in groups]
        self._sums = [torch.zeros(group.units) for group in groups]

    def advance(self, progress: float) -> None:
        """Adds the batch's norms."""
        for found, group, size in zip(self._sums, self.groups, self._sizes, strict=True):
            found.add_((group.totals(_squared_gradient) / size).sqrt())

    def scores(self) -> list[Tensor]:
        """The sums."""
        return self._sums


def _squared_gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.square()
