"""Whole transformer layers (Sajjad et al., 2020): what is left is wired together as it stands."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.structures.structure import Gate, Group, Part


class Layers:
    """A single group: its units are the layers, each of which owns all of its parameters."""

    name = "layers"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The stack."""
        stack = family_of(network).stack(network)
        parts = [Part(parameter, unit=unit) for unit, layer in enumerate(stack) for parameter in layer.parameters()]
        return [Group(-1, len(stack), tuple(parts))]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Blends each layer's output with its input: 1 is the layer, 0 is the layer left out."""
        stack = family_of(network).stack(network)
        return [layer.register_forward_hook(_blend(index, gate)) for index, layer in enumerate(stack)]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Drops layers from the stack."""
        family = family_of(network)
        stack = family.stack(network)
        for index in reversed((~keep[0]).nonzero().flatten().tolist()):
            del stack[index]
        family.refresh(network)


def _blend(index: int, gate: Gate) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # All layers share one set of factors per pass: the first one opens the gate.
        rows = gate.open(len(output), output) if index == 0 or gate.rows is None else gate.rows
        factor = rows[:, index, None, None]
        return factor * output + (1 - factor) * args[0]

    return hook
