"""Sublayers: the self-attention alone or the feed-forward part alone of whole layers (LLM-Drop: He et al., 2024).

What is dropped adds nothing to the residual stream any more. A norm before it goes too; one after it stays, and
normalises the stream as it is. Cross-attention is left alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families.family import Layer, Side
from workers.engine.families.sizes import refresh
from workers.engine.modeling_secateur import Absent, replace
from workers.engine.structures.layers import own_stacks
from workers.engine.structures.structure import Gate, Group, Part, each_pass


@dataclass(frozen=True)
class Sublayer:
    """The modules of one layer that go together."""

    layer: Layer
    paths: tuple[str, ...]
    output: nn.Module
    """Its last projection, whose output is added to the residual stream."""
    beside: dict[str, tuple[str, ...]]
    """What a module gives after the states, by path; see `Attention.beside`."""

    @property
    def entry(self) -> nn.Module:
        """What is given the residual stream."""
        return self.layer.find(self.paths[0])

    def parameters(self) -> list[nn.Parameter]:
        """Its own; a table of relative positions belongs to all layers."""
        shared = self.layer.side.position_bias
        own = [parameter for path in self.paths for parameter in self.layer.find(path).parameters()]
        return [parameter for parameter in own if shared is None or parameter is not shared.weight]

    def drop(self) -> None:
        """Takes it out of its layer."""
        for path in self.paths:
            replace(self.layer.module, path, Absent(self.beside.get(path, ())))


def attention_in(layer: Layer) -> list[Sublayer]:
    """The self-attention of a layer, where it has one."""
    attention, stack = layer.self_attention, layer.side.stack
    if attention is None:
        return []
    beside = {attention.paths.module: attention.paths.beside}
    return [Sublayer(layer, stack.attention_parts, attention.output, beside)]


def ffn_in(layer: Layer) -> list[Sublayer]:
    """The feed-forward part of a layer, where it has one."""
    return [Sublayer(layer, layer.side.stack.ffn_parts, layer.ffn_out, {})] if layer.ffn_in else []


class Sublayers:
    """One group per stack: its units are the sublayers of one kind that are left, each with its own parameters."""

    def __init__(self, name: str, find: Callable[[Layer], list[Sublayer]]) -> None:
        self.name, self.find = name, find

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The stacks; none of a family whose layers are one set of weights."""
        return [
            Group(
                layer=-1,
                units=len(sublayers),
                parts=tuple(
                    Part(parameter, unit=unit)
                    for unit, sublayer in enumerate(sublayers)
                    for parameter in sublayer.parameters()
                ),
                stack=side.stack.name,
            )
            for side, sublayers in self.by_stack(network)
        ]

    def by_stack(self, network: PreTrainedModel) -> list[tuple[Side, list[Sublayer]]]:
        """What a group is made of, in the order of the groups."""
        sides = own_stacks(network)
        return [(side, [found for layer in side.layers for found in self.find(layer)]) for side in sides]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales what each sublayer adds to the residual stream."""
        _, sublayers = self.by_stack(network)[group]
        return [
            each_pass(network, gate),
            *(sublayer.output.register_forward_hook(_scale(unit, gate)) for unit, sublayer in enumerate(sublayers)),
        ]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Drops sublayers; a table of relative positions in the first attention moves to the one that follows."""
        for (side, sublayers), kept in zip(self.by_stack(network), keep, strict=True):
            if self.find is attention_in:
                side.hand_on_positions(sublayers[int(kept.nonzero()[0])].layer)
            for sublayer, stays in zip(sublayers, kept.tolist(), strict=True):
                if not stays:
                    sublayer.drop()
        refresh(network)


def _scale(unit: int, gate: Gate) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(_output: nn.Module, _args: tuple[Any, ...], added: Tensor) -> Tensor:
        return added * gate.open(len(added), added)[:, unit, None, None]

    return hook


ATTENTION_LAYERS = Sublayers("attention_layers", attention_in)
FFN_LAYERS = Sublayers("ffn_layers", ffn_in)
