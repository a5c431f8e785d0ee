"""What every structure shares: groups of units, gates that close units for a while, slices that cut them for good."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.slicing import column_dim, row_dim, weight_of


@dataclass(frozen=True)
class Part:
    """A parameter of a group: `dim` is divided into one run per unit, or with `unit` all of it is that unit's.

    With `fused` the dimension holds so many projections end to end, each divided into one run per unit.
    """

    parameter: Tensor
    dim: int = 0
    unit: int | None = None
    fused: int = 1


@dataclass(frozen=True)
class Group:
    """The units of one structure in one place: the heads or neurons of a layer, all layers, or one weight matrix."""

    layer: int
    """Index of the transformer layer in its stack; -1 where the group spans several."""
    units: int
    parts: tuple[Part, ...]
    stack: str = ""
    """`encoder` or `decoder`; empty where the group spans both."""
    place: str = ""
    """Which of several groups of a layer: the path of an attention."""
    outputs: tuple[nn.Module, ...] = ()
    """Projections whose inputs are the units, each a run of features; empty where units are no features."""

    @property
    def key(self) -> tuple[str, str]:
        """Stack and place, which stay the same when layers go."""
        return self.stack, self.place

    def sums(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Sums of `value`, which has the parameter's shape, over all that a unit owns; (units,), with gradients."""
        whole = [_by_unit(value(part.parameter), part, self.units) for part in self.parts if part.unit is None]
        if whole:
            return torch.stack(whole).sum(0)
        own: list[list[Tensor]] = [[] for _ in range(self.units)]
        for part in self.parts:
            own[part.unit or 0].append(value(part.parameter).float().sum())
        return torch.stack([torch.stack(sums).sum() for sums in own])

    def totals(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """The same as plain numbers on the CPU."""
        with torch.no_grad():
            return self.sums(value).cpu()


def _by_unit(values: Tensor, part: Part, units: int) -> Tensor:
    return values.float().movedim(part.dim, 0).reshape(part.fused, units, -1).sum((0, 2))


class Gate:
    """Factors of a group's units, one set per row of the batch, so that one backward pass gives per-row gradients."""

    def __init__(self, factors: Tensor, *, learn: bool) -> None:
        self.factors = factors
        self.learn = learn
        self.rows: Tensor | None = None

    def open(self, batch: int, like: Tensor) -> Tensor:
        """Factors of (batch, units), on the device and in the dtype of `like`; the same ones throughout a pass."""
        if self.rows is None:
            self.rows = self.factors.to(like).repeat(batch, 1).requires_grad_(self.learn)
        return self.rows

    def close(self) -> None:
        """A new pass begins."""
        self.rows = None

    @property
    def gradients(self) -> Tensor:
        """The gradients of (batch, units) of the last pass."""
        if self.rows is None or self.rows.grad is None:
            raise RuntimeError("a gate that was not part of the loss has no gradients")
        return self.rows.grad


class Structure(Protocol):
    """What a structure can do."""

    name: str

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The units that exist now."""

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Hooks `gate` into the forward pass of a group."""

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Removes what is False in `keep`: one boolean tensor of (units,) per group, on the CPU."""


@contextmanager
def gated(network: PreTrainedModel, structure: Structure, gates: Sequence[Gate]) -> Iterator[None]:
    """The network with one gate per group, for the length of the block."""
    handles = [handle for index, gate in enumerate(gates) for handle in structure.gate(network, index, gate)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def each_pass(network: PreTrainedModel, gate: Gate) -> RemovableHandle:
    """Closes the gate whenever the network starts a forward pass."""

    def begin(_network: nn.Module, _args: Any) -> None:
        gate.close()

    return network.register_forward_pre_hook(begin)


def gate_inputs(projection: nn.Module, units: int, gate: Gate) -> RemovableHandle:
    """Scales the inputs of `projection`, which are `units` equal runs of features."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = args[0].unflatten(-1, (units, -1))
        factors = gate.open(len(features), features)
        return ((features * factors[:, None, :, None]).flatten(-2), *args[1:])

    return projection.register_forward_pre_hook(hook)


def gate_units(network: PreTrainedModel, group: Group, gate: Gate) -> list[RemovableHandle]:
    """Scales each unit's features where they enter the projections that the group ends in."""
    return [each_pass(network, gate), *(gate_inputs(output, group.units, gate) for output in group.outputs)]


def row_parts(projection: nn.Module, fused: int = 1) -> list[Part]:
    """Weight and bias of a projection, divided by its outputs."""
    parts = [Part(weight_of(projection), dim=row_dim(projection), fused=fused)]
    bias = getattr(projection, "bias", None)
    return parts if bias is None else [*parts, Part(bias, fused=fused)]


def column_part(projection: nn.Module) -> Part:
    """Weight of a projection, divided by its inputs."""
    return Part(weight_of(projection), dim=column_dim(projection))
