"""Block influence of layers (Men et al., 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.families import family_of
from workers.engine.structures.structure import Group


class Similarity(Criterion):
    """One minus the mean cosine between what enters a layer and what leaves it, over all tokens but padding."""

    needs = "activations"

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches every layer's input and output, and the mask of the batch."""
        stack = family_of(network).stack(network)
        self._mask = torch.ones(0, 0)
        self._sums = torch.zeros(len(stack), dtype=torch.float64)
        self._tokens = 0
        self._handles: list[RemovableHandle] = [
            network.register_forward_pre_hook(self._see_mask, with_kwargs=True),
            *(layer.register_forward_hook(self._hook(index)) for index, layer in enumerate(stack)),
        ]

    def _see_mask(self, _network: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        self._mask = inputs["attention_mask"]
        self._tokens += int(self._mask.sum())

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            cosines = torch.cosine_similarity(args[0].detach().float(), output.detach().float(), dim=-1)
            self._sums[index] += float(((1 - cosines) * self._mask).sum())

        return hook

    def scores(self) -> list[Tensor]:
        """One influence per layer; stops watching."""
        for handle in self._handles:
            handle.remove()
        return [(self._sums / max(1, self._tokens)).float()]
