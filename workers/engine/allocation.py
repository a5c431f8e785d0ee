"""Allocation: how many units go where, given their scores. Every function returns what to keep, as booleans."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from service.specs.rounding import nearest


def allocate(
    scores: list[Tensor], original: list[int], share: float, *, ranked: bool, comparable: bool
) -> list[Tensor]:
    """Keeps all but `share` of the `original` units per group, or with `ranked` of their sum, the best first.

    Rounded to the nearest; at least one unit of each group stays, and none that is gone comes back. In a joint ranking
    scores that are not `comparable` are divided by their group's mean first: raw norms favour layers of large weights.
    """
    if not ranked:
        left = [max(1, units - nearest(units * share)) for units in original]
        return [_highest(values, min(units, len(values))) for values, units in zip(scores, left, strict=True)]
    scaled = [values if comparable else values / values.mean().clamp_min(1e-30) for values in scores]
    best = [torch.arange(len(values)) == values.argmax() for values in scaled]
    together = torch.cat(scaled).masked_fill(torch.cat(best), math.inf)
    total = max(len(scores), sum(original) - nearest(sum(original) * share))
    return list(_highest(together, min(total, len(together))).split([len(values) for values in scores]))


def exact(scores: list[Tensor], share: float, *, ranked: bool) -> list[Tensor]:
    """Cuts exactly `share` of the single weights, rounded to the nearest: of each matrix, or with `ranked` of all."""
    if not ranked:
        return [_highest(values, len(values) - nearest(len(values) * share)) for values in scores]
    together = torch.cat(scores)
    keep = _highest(together, len(together) - nearest(len(together) * share))
    return list(keep.split([len(values) for values in scores]))


def above(scores: Tensor, threshold: float) -> Tensor:
    """Keeps what is above the threshold, and the best unit in any case."""
    keep = scores > threshold
    keep[scores.argmax()] = True
    return keep


def n_of_m(scores: Tensor, kept: int, m: int) -> Tensor:
    """The `kept` best of every `m` neighbours in a row; at most so many of what is left at its end. (rows, columns)"""
    columns = scores.shape[1]
    padded = functional.pad(scores, (0, -columns % m), value=-math.inf).unflatten(1, (-1, m))
    best = padded.topk(kept, dim=-1).indices
    keep = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, best, True)
    return keep.flatten(1)[:, :columns]


def blocks(scores: list[Tensor], size: int, share: float, *, ranked: bool) -> list[Tensor]:
    """Cuts `share` of the square blocks of each matrix, or with `ranked` of all, the lowest means first.

    Blocks at the right and lower edge are as small as what is left there. Scores and results of (rows, columns).
    """
    means = [_block_means(matrix, size) for matrix in scores]
    keep = exact([values.flatten() for values in means], share, ranked=ranked)
    return [
        mask.view(values.shape).repeat_interleave(size, 0).repeat_interleave(size, 1)[: len(matrix), : matrix.shape[1]]
        for mask, values, matrix in zip(keep, means, scores, strict=True)
    ]


def _block_means(scores: Tensor, size: int) -> Tensor:
    # What is cut already counts as nothing, else a block that is cut in part would look worse than one that is gone.
    tables = torch.stack([scores.clamp_min(0), torch.ones_like(scores)])
    rows, columns = scores.shape
    padded = functional.pad(tables, (0, -columns % size, 0, -rows % size))
    sums = padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).sum((2, 4))
    means: Tensor = sums[0] / sums[1]
    return means


def _highest(scores: Tensor, count: int) -> Tensor:
    """Marks exactly `count` of the highest; of equals the first. Linear time: a full sort of all weights is slow."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: count - int(keep.sum())]] = True
    return keep
