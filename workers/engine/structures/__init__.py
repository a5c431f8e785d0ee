"""Structures: which units exist, how to switch one off for scoring, and how to cut it for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import Layer, family_of, head_size_of


@dataclass(frozen=True)
class Group:
    """The units of one structure in one place: the heads or neurons of a layer, all layers, or one weight matrix.

    Unit `u` owns `parts`: pairs of a parameter and the dimension along which it is divided into `units` equal runs.
    """

    layer: int
    units: int
    parts: tuple[tuple[Tensor, int], ...]

    def per_unit(self, values: list[Tensor]) -> list[Tensor]:
        """Tensors shaped like the parts' parameters, each as (units, weights of the unit)."""
        return [
            value.movedim(dim, 0).reshape(self.units, -1) for value, (_, dim) in zip(values, self.parts, strict=True)
        ]


class Structure(Protocol):
    """What a structure can do."""

    name: str

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The units that exist now."""

    def gate(self, network: PreTrainedModel, group: int, gate: "Gate") -> RemovableHandle:
        """Hooks `gate` into the forward pass of a group."""

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Removes what is False in `keep`: one boolean tensor of (units,) per group."""


class Gate:
    """Factors of a group's units, one set per row of the batch, so that one backward pass gives per-row gradients."""

    def __init__(self, factors: Tensor, *, learn: bool) -> None:
        self.factors = factors
        self.learn = learn
        self.rows: list[Tensor] = []

    def __call__(self, batch: int, like: Tensor) -> Tensor:
        """Factors of shape (batch, units)."""
        rows = self.factors.to(like).repeat(batch, 1)
        if self.learn:
            rows.requires_grad_(True)
            self.rows.append(rows)
        return rows

    def take_gradients(self) -> Tensor:
        """The gradients of shape (batch, units) since the last call."""
        rows, self.rows = self.rows, []
        return torch.cat([row.grad if row.grad is not None else torch.zeros_like(row) for row in rows])


@contextmanager
def gated(network: PreTrainedModel, structure: Structure, gates: list[Gate]) -> Iterator[None]:
    """The network with one gate per group, for the length of the block."""
    handles = [structure.gate(network, index, gate) for index, gate in enumerate(gates)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gate_inputs(linear: nn.Linear, units: int, gate: Gate) -> RemovableHandle:
    """Scales the inputs of `linear`, which are `units` equal runs of features."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = args[0]
        factors = gate(features.shape[0], features)
        runs = features.unflatten(-1, (units, -1))
        return ((runs * factors[:, None, :, None]).flatten(-2), *args[1:])

    return linear.register_forward_pre_hook(hook)


def keep_rows(linear: nn.Linear, index: Tensor) -> None:
    """Cuts outputs of a Linear in place: `index` names those that stay."""
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_columns(linear: nn.Linear, index: Tensor) -> None:
    """Cuts inputs of a Linear in place: `index` names those that stay."""
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def _units_of(inputs: tuple[nn.Linear, ...], output: nn.Linear) -> tuple[tuple[Tensor, int], ...]:
    weights = [(linear.weight, 0) for linear in inputs]
    biases = [(linear.bias, 0) for linear in inputs if linear.bias is not None]
    return (*weights, *biases, (output.weight, 1))


class AttentionHeads:
    """One unit is a head: its rows of query, key and value, its columns of the output projection."""

    name = "attention_heads"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """One group per layer."""
        size = head_size_of(network)
        return [
            Group(index, layer.heads_out.in_features // size, _units_of(layer.heads_in, layer.heads_out))
            for index, layer in enumerate(family_of(network).layers(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> RemovableHandle:
        """Scales each head's output (Michel et al., 2019)."""
        layer = family_of(network).layers(network)[group]
        return _gate_inputs(layer.heads_out, layer.heads_out.in_features // head_size_of(network), gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices the four projections."""
        size, family = head_size_of(network), family_of(network)
        for layer, kept in zip(family.layers(network), keep, strict=True):
            index = kept.repeat_interleave(size).nonzero().flatten()
            for linear in layer.heads_in:
                keep_rows(linear, index)
            keep_columns(layer.heads_out, index)
        family.refresh(network)


class FfnNeurons:
    """One unit is an intermediate neuron: its row of the first projection, its column of the second."""

    name = "ffn_neurons"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """One group per layer."""
        return [
            Group(index, layer.ffn_in.out_features, _units_of((layer.ffn_in,), layer.ffn_out))
            for index, layer in enumerate(family_of(network).layers(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> RemovableHandle:
        """Scales each neuron's activation."""
        layer = family_of(network).layers(network)[group]
        return _gate_inputs(layer.ffn_out, layer.ffn_out.in_features, gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices both projections."""
        family = family_of(network)
        for layer, kept in zip(family.layers(network), keep, strict=True):
            index = kept.nonzero().flatten()
            keep_rows(layer.ffn_in, index)
            keep_columns(layer.ffn_out, index)
        family.refresh(network)


class Layers:
    """One unit is a whole transformer layer; what is left is wired together as it stands."""

    name = "layers"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """A single group of all layers; its parts are not divided by a dimension, so it has none."""
        return [Group(-1, len(family_of(network).layers(network)), ())]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> RemovableHandle:
        """Blends each layer's output with its input: 1 is the layer, 0 is the layer left out."""
        return _LayerGates(family_of(network).layers(network), gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Drops layers from the stack."""
        family = family_of(network)
        stack = family.stack(network)
        for index in reversed((~keep[0]).nonzero().flatten().tolist()):
            del stack[index]
        family.refresh(network)


class _LayerGates(RemovableHandle):
    """One gate whose units are layers: the first layer of a forward pass draws the factors, the others share them."""

    def __init__(self, layers: list[Layer], gate: Gate) -> None:
        self._gate = gate
        self._rows: Tensor | None = None
        self._handles = [
            layer.module.register_forward_hook(self._hook(index, index == 0)) for index, layer in enumerate(layers)
        ]

    def _hook(self, index: int, first: bool):  # type: ignore[no-untyped-def] # torch types hooks only loosely
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if first or self._rows is None:
                self._rows = self._gate(output.shape[0], output)
            factor = self._rows[:, index, None, None]
            return factor * output + (1 - factor) * args[0]

        return hook

    def remove(self) -> None:
        """Take all hooks out."""
        for handle in self._handles:
            handle.remove()


class Weights:
    """One unit is a single weight of a Linear inside the transformer layers; embeddings and heads are left alone."""

    name = "weights"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """One group per weight matrix."""
        return [
            Group(index, linear.weight.numel(), ((linear.weight, 0),))
            for index, linear in enumerate(linears_of(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> RemovableHandle:
        """A factor for every single weight, shared by the batch."""
        return _WeightGate(linears_of(network)[group], gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Sets weights to zero; they cost the same time, but compress."""
        with torch.no_grad():
            for linear, kept in zip(linears_of(network), keep, strict=True):
                linear.weight.mul_(kept.view_as(linear.weight))


class _WeightGate(RemovableHandle):
    def __init__(self, linear: nn.Linear, gate: Gate) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
            factors = gate(1, linear.weight).view_as(linear.weight)
            return nn.functional.linear(args[0], linear.weight * factors, linear.bias)

        self._handle = linear.register_forward_hook(lambda module, args, output: hook(module, args))

    def remove(self) -> None:
        """Take the hook out."""
        self._handle.remove()


def linears_of(network: PreTrainedModel) -> list[nn.Linear]:
    """Every Linear inside the transformer layers, in order."""
    stack = family_of(network).stack(network)
    return [module for module in stack.modules() if isinstance(module, nn.Linear)]


STRUCTURES: dict[str, Structure] = {
    structure.name: structure for structure in (AttentionHeads(), FfnNeurons(), Layers(), Weights())
}
