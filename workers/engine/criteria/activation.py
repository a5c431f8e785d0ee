"""Activation: the size of a unit's weights times that of what flows through them (Wanda: Sun et al., 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.tokens import Tokens
from workers.engine.slicing import matrix_of
from workers.engine.structures.hidden_size import norms
from workers.engine.structures.structure import Group, Structure


class Activation(Criterion):
    """How much a unit adds to the output of its projection: ‖x_j‖₂ · ‖W_j‖₂ over its features j, per token."""

    needs = "activations"
    comparable = False

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches what enters the projections that units end in."""
        self.groups = groups
        self._tokens = Tokens(network)
        self._squares = [torch.zeros(group.units) for group in groups]
        self._counts = [0 for _ in groups]
        self._handles: list[RemovableHandle] = [
            output.register_forward_pre_hook(self._hook(index, output))
            for index, group in enumerate(groups)
            for output in group.outputs
        ]

    def _hook(self, index: int, output: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given = self._tokens.rows(args[0])
            moved = given.square().sum(0) * matrix_of(output).detach().float().square().sum(0)
            self._squares[index] += moved.view(len(self._squares[index]), -1).sum(1).cpu()
            self._counts[index] += len(given)

        return hook

    def scores(self) -> list[Tensor]:
        """Root mean squares over tokens; stops watching."""
        self._tokens.close()
        for handle in self._handles:
            handle.remove()
        return [(sums / max(1, count)).sqrt() for sums, count in zip(self._squares, self._counts, strict=True)]


class StreamActivation(Criterion):
    """Mean size of a dimension of the residual stream where it is normalised (Muralidharan et al., 2024)."""

    needs = "activations"

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches all norms of the stream."""
        self._tokens = Tokens(network)
        self._sums = torch.zeros(groups[0].units)
        self._handles = [norm.register_forward_hook(self._see) for norm in norms(network)]

    def _see(self, _norm: nn.Module, _args: Any, output: Tensor) -> None:
        if output.dim() > 2:
            self._sums += self._tokens.rows(output).abs().mean(0).cpu()

    def scores(self) -> list[Tensor]:
        """The sums over norms and batches; stops watching."""
        self._tokens.close()
        for handle in self._handles:
            handle.remove()
        return [self._sums]


def activation(spec: Any, structure: Structure, generator: torch.Generator) -> Criterion:
    """The form that fits the structure."""
    return (StreamActivation if structure.name == "hidden_size" else Activation)(spec, structure, generator)
