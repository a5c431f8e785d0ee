"""Single weights (Han et al., 2015): zeros save no time on a CPU or a plain GPU; they compress."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.structures.structure import Gate, Group, Part


def linears_of(network: PreTrainedModel) -> list[nn.Linear]:
    """Every Linear inside the transformer layers, in order; embeddings and the head are left alone."""
    stack = family_of(network).stack(network)
    return [module for module in stack.modules() if isinstance(module, nn.Linear)]


class Weights:
    """One group per weight matrix; a zero counts as cut already."""

    name = "weights"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The weight matrices."""
        return [
            Group(index, linear.weight.numel(), (Part(linear.weight),))
            for index, linear in enumerate(linears_of(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """A factor for every single weight, the same for the whole batch."""

        def hook(linear: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
            assert isinstance(linear, nn.Linear)
            factors = gate.open(1, linear.weight).view_as(linear.weight)
            return functional.linear(args[0], linear.weight * factors, linear.bias)

        return [linears_of(network)[group].register_forward_hook(hook)]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Sets weights to zero."""
        with torch.no_grad():
            for linear, kept in zip(linears_of(network), keep, strict=True):
                linear.weight.mul_(kept.view_as(linear.weight).to(linear.weight.device))
