"""Block influence of layers (Men et al., 2024) and of their attentions and feed-forward parts (He et al., 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from service.specs import Criterion as CriterionSpec
from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.tokens import Tokens
from workers.engine.structures.layers import hidden_states, input_states, own_stacks
from workers.engine.structures.structure import Group, Structure
from workers.engine.structures.sublayers import Sublayer, Sublayers


class Similarity(Criterion):
    """One minus the mean cosine between what enters a layer and what leaves it, over all tokens but padding."""

    needs = "activations"

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches the states before and after every unit."""
        self._tokens = Tokens(network)
        self._sums = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
        self._counts = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
        self._handles = self._watch(network)

    def _watch(self, network: PreTrainedModel) -> list[RemovableHandle]:
        return [
            layer.register_forward_hook(self._hook(place, index), with_kwargs=True)
            for place, side in enumerate(own_stacks(network))
            for index, layer in enumerate(side.modules)
        ]

    def _hook(self, place: int, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._compare(place, index, input_states(args, kwargs), hidden_states(output))

        return hook

    def _compare(self, place: int, index: int, before: Tensor, after: Tensor) -> None:
        given, made = self._tokens.rows(before), self._tokens.rows(after)
        self._sums[place][index] += float((1 - torch.cosine_similarity(given, made, dim=-1)).sum())
        self._counts[place][index] += len(given)

    def scores(self) -> list[Tensor]:
        """One influence per unit; stops watching."""
        self._tokens.close()
        for handle in self._handles:
            handle.remove()
        return [(sums / counts.clamp_min(1)).float() for sums, counts in zip(self._sums, self._counts, strict=True)]


class SublayerSimilarity(Similarity):
    """The same for what one part of a layer adds: the residual stream before against the sum, before any norm."""

    def _watch(self, network: PreTrainedModel) -> list[RemovableHandle]:
        assert isinstance(self.structure, Sublayers)
        return [
            handle
            for place, (_, sublayers) in enumerate(self.structure.by_stack(network))
            for index, sublayer in enumerate(sublayers)
            for handle in self._hooks(place, index, sublayer)
        ]

    def _hooks(self, place: int, index: int, sublayer: Sublayer) -> list[RemovableHandle]:
        stream: list[Tensor] = []

        def enter(_entry: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream[:] = [input_states(args, kwargs)]

        def leave(_output: nn.Module, _args: tuple[Any, ...], added: Tensor) -> None:
            self._compare(place, index, stream[0], stream.pop() + added)

        entry = sublayer.entry.register_forward_pre_hook(enter, with_kwargs=True)
        return [entry, sublayer.output.register_forward_hook(leave)]


def similarity(spec: CriterionSpec, structure: Structure, generator: torch.Generator) -> Criterion:
    """The form that fits the structure."""
    form = SublayerSimilarity if isinstance(structure, Sublayers) else Similarity
    return form(spec, structure, generator)
