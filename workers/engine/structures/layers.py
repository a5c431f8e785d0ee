"""Whole transformer layers (Sajjad et al., 2020): what is left is wired together as it stands."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.family import Layer, Side
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
            for side in own_stacks(network)
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Blends each layer's output with its input: 1 is the layer, 0 is the layer left out."""
        layers = own_stacks(network)[group].modules
        return [
            each_pass(network, gate),
            *(layer.register_forward_hook(_blend(index, gate), with_kwargs=True) for index, layer in enumerate(layers)),
        ]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Drops layers from the stacks; a table of relative positions moves to the first that is left to read it.

        Raises EngineError CUT_OUT_OF_REACH where no attention or no feed-forward part would be left in a stack.
        """
        sides = own_stacks(network)
        for side, kept in zip(sides, keep, strict=True):
            _check_left(side, kept)
        for side, kept in zip(sides, keep, strict=True):
            side.hand_on_positions(next(layer for layer in _left(side, kept) if layer.self_attention))
            for index in reversed((~kept).nonzero().flatten().tolist()):
                del side.modules[index]
        refresh(network)


def own_stacks(network: PreTrainedModel) -> list[Side]:
    """The stacks whose layers have weights of their own."""
    family = family_of(network)
    return [] if family.shares_layers else family.sides(network)


def _left(side: Side, kept: Tensor) -> list[Layer]:
    return [layer for layer, stays in zip(side.layers, kept.tolist(), strict=True) if stays]


def _check_left(side: Side, kept: Tensor) -> None:
    """Layers may lack parts that were dropped before."""
    left = _left(side, kept)
    if not any(layer.self_attention for layer in left) or not any(layer.ffn_in for layer in left):
        message = (
            "the layers that would stay have lost their attention or their feed-forward parts to an earlier cut; "
            "cut layers first, or fewer of them"
        )
        raise EngineError("CUT_OUT_OF_REACH", message, blame="user")


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
