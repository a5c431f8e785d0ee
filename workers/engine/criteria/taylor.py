"""First-order Taylor expansion of the loss (Molchanov et al., 2019; for heads Michel et al., 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from service.specs import Criterion as CriterionSpec
from workers.engine.criteria.criterion import Criterion, weight_times_gradient
from workers.engine.structures.structure import Gate, Group, Structure


class Taylor(Criterion):
    """How much the loss of a row changes when a unit's gate closes: |gradient of the gate|, averaged over rows.

    The gate's gradient equals the sum of weight times gradient over what feeds the gate. Its size is taken row by row,
    so that rows of opposite sign do not cancel.
    """

    needs = "gates"
    size = staticmethod(torch.abs)
    """What is made of a gradient before rows are added up."""

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Hooks one open gate into every group."""
        self._sums = [torch.zeros(group.units) for group in groups]
        self._gates = [Gate(torch.ones(group.units), learn=True) for group in groups]
        self._handles: list[RemovableHandle] = [
            handle for index, gate in enumerate(self._gates) for handle in self.structure.gate(network, index, gate)
        ]

    def advance(self, progress: float) -> None:
        """Adds the rows of the batch."""
        for found, gate in zip(self._sums, self._gates, strict=True):
            found.add_(self.size(gate.gradients.float()).sum(0).cpu())

    def scores(self) -> list[Tensor]:
        """The sums; takes the gates out."""
        for handle in self._handles:
            handle.remove()
        return self._sums


class WeightTaylor(Criterion):
    """The same for single weights: |weight times its gradient|, summed over batches."""

    needs = "gradients"
    size = staticmethod(torch.abs)
    """What is made of the product before batches are added up."""

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Sums start at zero."""
        self.groups = groups
        self._sums = [torch.zeros(group.units) for group in groups]

    def advance(self, progress: float) -> None:
        """Adds the batch."""
        for found, group in zip(self._sums, self.groups, strict=True):
            found.add_(group.totals(lambda weight: self.size(weight_times_gradient(weight))))

    def scores(self) -> list[Tensor]:
        """The sums."""
        return self._sums


def taylor(spec: CriterionSpec, structure: Structure, generator: torch.Generator) -> Criterion:
    """The form that fits the structure: a gate for every single weight would cost a gradient per row and weight."""
    form = WeightTaylor if structure.name == "weights" else Taylor
    return form(spec, structure, generator)
