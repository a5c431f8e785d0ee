"""What every structure shares: groups of units, gates that close units for a while, slices that cut them for good."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Part:
    """A parameter of a group: `dim` is divided into one run per unit, or with `unit` all of it is that unit's."""

    parameter: Tensor
    dim: int = 0
    unit: int | None = None


@dataclass(frozen=True)
class Group:
    """The units of one structure in one place: the heads or neurons of a layer, all layers, or one weight matrix."""

    layer: int
    """Index of the transformer layer; -1 where the group spans several."""
    units: int
    parts: tuple[Part, ...]

    def totals(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Sums of `value`, which has the parameter's shape, over everything that a unit owns; (units,), on the CPU."""
        total = torch.zeros(self.units)
        for part in self.parts:
            values = value(part.parameter).detach().float()
            if part.unit is None:
                total += values.movedim(part.dim, 0).reshape(self.units, -1).sum(1).cpu()
            else:
                total[part.unit] += values.sum().cpu()
        return total


class Gate:
    """Factors of a group's units, one set per row of the batch, so that one backward pass gives per-row gradients."""

    def __init__(self, factors: Tensor, *, learn: bool) -> None:
        self.factors = factors
        self.learn = learn
        self.rows: Tensor | None = None

    def open(self, batch: int, like: Tensor) -> Tensor:
        """Factors of (batch, units) for one forward pass, on the device and in the dtype of `like`."""
        self.rows = self.factors.to(like).repeat(batch, 1)
        return self.rows.requires_grad_(self.learn)

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


def gate_inputs(linear: nn.Linear, units: int, gate: Gate) -> RemovableHandle:
    """Scales the inputs of `linear`, which are `units` equal runs of features."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        runs = args[0].unflatten(-1, (units, -1))
        factors = gate.open(len(runs), runs)
        return ((runs * factors[:, None, :, None]).flatten(-2), *args[1:])

    return linear.register_forward_pre_hook(hook)


def keep_rows(linear: nn.Linear, index: Tensor) -> None:
    """Cuts outputs of a Linear in place: `index` names those that stay."""
    index = index.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_columns(linear: nn.Linear, index: Tensor) -> None:
    """Cuts inputs of a Linear in place: `index` names those that stay."""
    index = index.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def parts_of(inputs: Sequence[nn.Linear], output: nn.Linear) -> tuple[Part, ...]:
    """What units between two projections own: rows and biases of `inputs`, columns of `output`."""
    weights = [Part(linear.weight) for linear in inputs]
    biases = [Part(linear.bias) for linear in inputs if linear.bias is not None]
    return (*weights, *biases, Part(output.weight, dim=1))
