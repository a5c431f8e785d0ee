"""Block influence of layers (Men et al., 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.tokens import Tokens
from workers.engine.families import family_of
from workers.engine.structures.layers import hidden_states, input_states
from workers.engine.structures.structure import Group


class Similarity(Criterion):
    """One minus the mean cosine between what enters a layer and what leaves it, over all tokens but padding."""

    needs = "activations"

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches every layer's input and output."""
        self._tokens = Tokens(network)
        self._sums = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
        self._counts = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
        self._handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._hook(place, index), with_kwargs=True)
            for place, side in enumerate(family_of(network).sides(network))
            for index, layer in enumerate(side.modules)
        ]

    def _hook(self, place: int, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, made = (self._tokens.rows(states) for states in (input_states(args, kwargs), hidden_states(output)))
            self._sums[place][index] += float((1 - torch.cosine_similarity(given, made, dim=-1)).sum())
            self._counts[place][index] += len(given)

        return hook

    def scores(self) -> list[Tensor]:
        """One influence per layer; stops watching."""
        self._tokens.close()
        for handle in self._handles:
            handle.remove()
        return [(sums / counts.clamp_min(1)).float() for sums, counts in zip(self._sums, self._counts, strict=True)]
