"""Regularization: fine-tune under a penalty, then cut what it made small."""

import torch
from torch import Tensor

from service.specs.criteria import Regularization as RegularizationSpec
from workers.engine.criteria.criterion import Criterion
from workers.engine.penalties import penalty


class Regularization(Criterion):
    """Root mean square of a unit's weights after training under `l1`, `l2` or `group_lasso`."""

    needs = "training"
    comparable = False

    def extra_loss(self) -> Tensor:
        """The penalty on the units."""
        assert isinstance(self.spec, RegularizationSpec)
        return self.spec.strength * penalty(self.spec.penalty, self.groups)

    def scores(self) -> list[Tensor]:
        """What is left of them."""
        return [(group.totals(torch.square) / group.totals(torch.ones_like)).sqrt() for group in self.groups]
