"""What every criterion has to do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Criterion as CriterionSpec
from workers.engine.structures.structure import Group, Structure


def weight_times_gradient(weight: Tensor) -> Tensor:
    """The change of the loss, to first order, if every weight alone went to zero, with its sign turned round."""
    return torch.zeros_like(weight) if weight.grad is None else weight.detach() * weight.grad


class Criterion(ABC):
    """Scores the units of one structure.

    Life: `attach`, then for every batch of rows a forward pass, with `needs` a backward pass, and `advance`; last
    `scores`. Most criteria leave the first three as they are.
    """

    needs: ClassVar[Literal["nothing", "activations", "gates", "gradients", "training"]] = "nothing"
    """What has to be there per batch: no rows at all, a forward pass, gradients of gates or of the parameters, or a
    step of fine-tuning by the task's loss plus `extra_loss`, before whose update `advance` is called."""
    comparable: ClassVar[bool] = True
    """Whether scores of different groups are in one unit. Norms are not: they follow the scale of a layer's weights."""

    def __init__(self, spec: CriterionSpec, structure: Structure, generator: torch.Generator) -> None:
        self.spec, self.structure, self.generator = spec, structure, generator
        self.groups: Sequence[Group] = ()

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Gets ready to watch `network`."""
        self.groups = groups

    def extra_loss(self) -> Tensor | None:
        """A penalty to add to the loss while the network is fine-tuned."""
        return None

    def advance(self, progress: float) -> None:
        """Takes what a batch left behind; `progress` is the share of the rows read, in (0, 1]."""
        return None

    @abstractmethod
    def scores(self) -> list[Tensor]:
        """One float tensor of (units,) per group, on the CPU; the lowest are cut first. Called once, at the end."""
