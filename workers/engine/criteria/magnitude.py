"""Magnitude (Han et al., 2015; Li et al., 2017)."""

import torch
from torch import Tensor

from service.specs.criteria import Magnitude as MagnitudeSpec
from workers.engine.criteria.criterion import Criterion


class Magnitude(Criterion):
    """Mean p-norm of a unit's weights: mean |w| (norm 1) or root mean square (norm 2).

    Of whole heads and neurons it says little: there it did worse than chance in our measurements.
    """

    comparable = False

    def scores(self) -> list[Tensor]:
        """Norms, free of the number of weights in a unit."""
        assert isinstance(self.spec, MagnitudeSpec)
        norm = self.spec.norm
        return [
            (group.totals(lambda weight: weight.detach().abs() ** norm) / group.totals(torch.ones_like)) ** (1 / norm)
            for group in self.groups
        ]
