"""Chance: the control that every criterion must beat."""

import torch
from torch import Tensor

from workers.engine.criteria.criterion import Criterion


class Random(Criterion):
    """Uniform numbers under the job's seed."""

    def scores(self) -> list[Tensor]:
        """Fresh numbers at every call."""
        return [torch.rand(group.units, generator=self.generator) for group in self.groups]
