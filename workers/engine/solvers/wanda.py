"""Weights by activation, "Wanda" (Sun et al., 2024): a weight counts as much as what usually flows through it."""

import torch
from torch import Tensor

from service.specs.rounding import nearest
from workers.engine.allocation import blocks, n_of_m


def wanda_scores(weight: Tensor, square_sums: Tensor) -> Tensor:
    """|W_ij| times the norm of input j, of W's shape (outputs, inputs).

    `square_sums` (inputs,) are the sums of every input's squares over tokens.
    """
    return weight.abs() * square_sums.sqrt()


def keep_mask(
    scores: Tensor, share: float = 0.5, pattern: tuple[int, int] | None = None, side: int | None = None
) -> Tensor:
    """What stays, as booleans of the shape of `scores` (outputs, inputs).

    Plain weights are compared within their row; exactly `share` of the matrix is cut, rounded to the nearest: the same
    number in every row, and of what does not divide one more in the rows where the next is worth least. A `pattern`
    (N, M) keeps N of every M neighbours whatever the share; with `side` squares of that side are cut, compared within
    the whole matrix.
    """
    if pattern is not None:
        return n_of_m(scores, *pattern)
    if side is not None:
        return blocks([scores], side, share, ranked=False)[0]
    order = scores.argsort(dim=1, stable=True)
    each, left_over = divmod(nearest(scores.numel() * share), len(scores))
    keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], False)
    if left_over:
        following = order[:, each : each + 1]
        poorest = scores.gather(1, following).flatten().argsort(stable=True)[:left_over]
        keep[poorest, following[poorest, 0]] = False
    return keep
