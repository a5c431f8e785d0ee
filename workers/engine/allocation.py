"""Allocation: how many units go where, given their scores. Every function returns what to keep, as booleans."""

import torch
from torch import Tensor


def to_keep(units: int, share: float) -> int:
    """Units left after cutting `share` of `units`, rounded to the nearest; one always stays."""
    return max(1, units - int(units * share + 0.5))


def best(scores: Tensor, keep: int) -> Tensor:
    """Exactly the `keep` highest of `scores`, ties broken by position."""
    order = torch.argsort(scores, descending=True, stable=True)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask


def uniform(scores: list[Tensor], keep: list[int]) -> list[Tensor]:
    """The same share in every group: `keep[g]` units of group g."""
    return [best(score, count) for score, count in zip(scores, keep, strict=True)]


def ranked(scores: list[Tensor], keep: int, *, comparable: bool) -> list[Tensor]:
    """`keep` units over all groups, ranked together; each group keeps its best one.

    Scores of different groups that are not `comparable` are first divided by their group's mean, since raw norms favour
    groups with large weights.
    """
    scaled = [score if comparable else score / score.mean().clamp_min(1e-30) for score in scores]
    firsts = [torch.zeros(len(score), dtype=torch.bool) for score in scores]
    for first, score in zip(firsts, scaled, strict=True):
        first[score.argmax()] = True
    together = torch.cat(scaled).masked_fill(torch.cat(firsts), float("inf"))
    return list(best(together, max(keep, len(scores))).split([len(score) for score in scores]))


def two_of_four(score: Tensor, columns: int) -> Tensor:
    """The two highest of every four neighbours in a row of `columns`; a row's odd end is kept whole."""
    rows = score.view(-1, columns)
    whole = columns // 4 * 4
    runs = rows[:, :whole].unflatten(1, (-1, 4))
    kept = torch.zeros_like(runs, dtype=torch.bool).scatter(-1, runs.topk(2, dim=-1).indices, True)
    tail = torch.ones(len(rows), columns - whole, dtype=torch.bool)
    return torch.cat([kept.flatten(1), tail], dim=1).flatten()
