"""Penalties that pull weights or whole units to zero while a network is trained."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Regularizer
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group

SMALLEST = 1e-12
"""Added below roots, whose slope at zero has no end."""


def penalty(kind: str, groups: Sequence[Group]) -> Tensor:
    """A differentiable number: `l1`, Σ|w| (Tibshirani, 1996); `l2`, Σw²; or `group_lasso`, Σ √n ‖w_u‖₂ over units u of
    n weights each (Yuan and Lin, 2006)."""
    if kind == "l1":
        return torch.stack([group.sums(torch.abs).sum() for group in groups]).sum()
    squares = [group.sums(torch.square) for group in groups]
    if kind == "l2":
        return torch.stack([values.sum() for values in squares]).sum()
    sizes = [group.sums(torch.ones_like) for group in groups]
    lengths = [((values + SMALLEST) * size).sqrt().sum() for values, size in zip(squares, sizes, strict=True)]
    return torch.stack(lengths).sum()


def regularizer(network: PreTrainedModel, spec: Regularizer) -> Callable[[], Tensor]:
    """The penalty of a fine-tuning: on all weights of the layers, with `group_lasso` on heads and neurons."""
    names = ("attention_heads", "ffn_neurons") if spec.kind == "group_lasso" else ("weights",)
    groups = [group for name in names for group in STRUCTURES[name].groups(network)]
    return lambda: spec.strength * penalty(spec.kind, groups)
