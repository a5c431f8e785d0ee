"""Whole transformer layers (Sajjad et al., 2020): what is left is wired together as it stands."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.families.family import Side
from workers.engine.families.sizes import refresh
from workers.engine.structures.structure import Gate, Group, Part, each_pass


class Layers:
    """One group per stack: its units are the layers, each of which owns all of its parameters."""

    name = "layers"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The stacks; none of a family whose layers are one set of weights."""
        return [
            Group(
                layer=-1,
                units=len(side.modules),
                parts=tuple(
                    Part(parameter, unit=unit)
                    for unit, layer in enumerate(side.modules)
                    for parameter in layer.parameters()
                ),
                stack=side.stack.name,
            )
            for side in _sides(network)
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Blends each layer's output with its input: 1 is the layer, 0 is the layer left out."""
        layers = _sides(network)[group].modules
        return [
            each_pass(network, gate),
            *(layer.register_forward_hook(_blend(index, gate), with_kwargs=True) for index, layer in enumerate(layers)),
        ]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Drops layers from the stacks; a table of relative positions in the first moves to the one that follows."""
        for side, kept in zip(_sides(network), keep, strict=True):
            _hand_on_positions(side, int(kept.nonzero()[0]))
            for index in reversed((~kept).nonzero().flatten().tolist()):
                del side.modules[index]
        refresh(network)


def _sides(network: PreTrainedModel) -> list[Side]:
    family = family_of(network)
    return [] if family.shares_layers else family.sides(network)


def _hand_on_positions(side: Side, first: int) -> None:
    path = side.stack.position_bias
    if path is None or first == 0:
        return
    owner, _, name = path.rpartition(".")
    attention: Any = side.modules[first].get_submodule(owner)
    setattr(attention, name, side.position_bias)
    attention.has_relative_attention_bias = True


def hidden_states(output: Any) -> Tensor:
    """What a layer hands on, alone or first of several values."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states


def input_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer is given to work on."""
    states = args[0] if args else kwargs["hidden_states"]
    assert isinstance(states, Tensor)
    return states


def _blend(index: int, gate: Gate) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = hidden_states(output)
        factor = gate.open(len(states), states)[:, index, None, None]
        blended = factor * states + (1 - factor) * input_states(args, kwargs)
        return (blended, *output[1:]) if isinstance(output, tuple) else blended

    return hook
