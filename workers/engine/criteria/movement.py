"""Movement (Sanh et al., 2020): what shrinks while the network is fine-tuned was not needed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion, weight_times_gradient
from workers.engine.structures.structure import Group


class Movement(Criterion):
    """Minus the sum, over the steps of fine-tuning, of weight times gradient, added up over a unit's weights.

    A step moves a weight against its gradient, so that weight times gradient is positive where it moves towards zero.
    """

    needs = "training"
    comparable = False

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Sums start at zero."""
        self.groups = groups
        self._sums = [torch.zeros(group.units) for group in groups]

    def advance(self, progress: float) -> None:
        """Takes the gradients of a step."""
        for found, group in zip(self._sums, self.groups, strict=True):
            found.sub_(group.totals(weight_times_gradient))

    def scores(self) -> list[Tensor]:
        """The sums, moved so that none is negative: joint rankings divide by their mean, but not those of weights."""
        lowest = [sums.min() for sums in self._sums]
        if self.structure.name == "weights":
            lowest = [min(lowest)] * len(lowest)
        return [sums - least for sums, least in zip(self._sums, lowest, strict=True)]
