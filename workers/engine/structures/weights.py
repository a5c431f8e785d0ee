"""Single weights (Han et al., 2015): zeros save no time on a CPU or a plain GPU; they compress."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.slicing import by_input, matrix_of, projections_in, weight_of
from workers.engine.structures.structure import Gate, Group, Part, each_pass


def linears_of(network: PreTrainedModel, stack: str | None = None) -> list[nn.Module]:
    """Every projection inside the transformer layers, in order; embeddings and the head are left alone."""
    return [
        module
        for side in family_of(network).sides(network)
        if stack in (None, side.stack.name)
        for module in projections_in(side.modules)
    ]


class Weights:
    """One group per weight matrix; a zero counts as cut already."""

    name = "weights"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The weight matrices."""
        return [
            Group(
                layer=index,
                units=weight_of(linear).numel(),
                parts=(Part(weight_of(linear)),),
                stack=side.stack.name,
                outputs=(linear,),
            )
            for side in family_of(network).sides(network)
            for index, linear in enumerate(linears_of(network, side.stack.name))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """A factor for every single weight, the same for the whole batch."""

        def hook(linear: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
            weight = weight_of(linear)
            factors = gate.open(1, weight).view_as(weight)
            matrix = matrix_of(linear) * by_input(linear, factors)
            bias = linear.bias
            assert bias is None or isinstance(bias, Tensor)
            return functional.linear(args[0], matrix, bias)

        return [each_pass(network, gate), linears_of(network)[group].register_forward_hook(hook)]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Sets weights to zero."""
        with torch.no_grad():
            for linear, kept in zip(linears_of(network), keep, strict=True):
                weight = weight_of(linear)
                # A product would leave -0.0, which the compressed form has to keep.
                weight.masked_fill_(~kept.view_as(weight).to(weight.device), 0)
