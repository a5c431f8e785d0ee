"""Budget: which units to keep when they differ in cost, solved exactly for scores that add up.

Units of one cost compete only by score, so that a solution is one number per cost: how many of the best to keep. The
numbers are found over the combinations that no other one beats in both score and cost (a knapsack by classes, as in
latency-aware pruning: Shen et al., 2022), which are few.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1e-9
"""Part of the budget by which rounding may miss it."""


@dataclass(frozen=True)
class _Curve:
    """What keeping ever more units of one class costs and is worth: float64 of (choices,), both for the whole class."""

    costs: Tensor
    values: Tensor


def solve(scores: list[Tensor], costs: list[float], budget: float, minimum: list[int]) -> list[Tensor]:
    """Keep masks of the highest possible sum of scores whose units cost at most `budget` together.

    `scores` has one tensor of (units,) per group, `costs` what a single unit of the group costs, `minimum` how many
    units of it stay in any case. Where even those exceed the budget, they are all that is kept.
    """
    classes = sorted(set(costs))
    members = [[group for group, cost in enumerate(costs) if cost == wanted] for wanted in classes]
    ranked = [_rank([scores[group] for group in found], [minimum[group] for group in found]) for found in members]
    curves = [
        _Curve(cost * torch.arange(least, len(order) + 1, dtype=torch.float64), values[least:])
        for cost, (order, values, least) in zip(classes, ranked, strict=True)
    ]
    keep = [torch.zeros(len(values), dtype=torch.bool) for values in scores]
    for found, (order, _, least), choice in zip(members, ranked, _choose(curves, budget), strict=True):
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[: least + choice]] = True
        for group, mask in zip(found, chosen.split([len(scores[group]) for group in found]), strict=True):
            keep[group] = mask
    return keep


def solve_uniform(
    scores: list[Tensor],
    costs: list[float],
    budget: float,
    minimum: list[int],
    kinds: list[str],
    allowed: Mapping[str, Collection[int]] | None = None,
) -> list[Tensor]:
    """The same where all groups of one of `kinds` keep the same number of units, as stock configs demand.

    A group with fewer units than that keeps all of them. A kind in `allowed` keeps one of its numbers there.
    """
    names = sorted(set(kinds))
    members = [[group for group, kind in enumerate(kinds) if kind == name] for name in names]
    counts = [
        _counts([len(scores[group]) for group in found], max(minimum[group] for group in found), allowed or {}, name)
        for name, found in zip(names, members, strict=True)
    ]
    curves = [
        _uniform_curve([scores[group] for group in found], [costs[group] for group in found], numbers)
        for found, numbers in zip(members, counts, strict=True)
    ]
    keep = [torch.zeros(len(values), dtype=torch.bool) for values in scores]
    for found, numbers, choice in zip(members, counts, _choose(curves, budget), strict=True):
        for group in found:
            keep[group][_descending(scores[group])[: numbers[choice]]] = True
    return keep


def _counts(units: list[int], least: int, allowed: Mapping[str, Collection[int]], kind: str) -> list[int]:
    """How many units each group of a kind may keep, ascending."""
    numbers = range(least, max(units) + 1)
    return [number for number in numbers if kind not in allowed or number in allowed[kind]]


def _descending(scores: Tensor) -> Tensor:
    return scores.double().argsort(descending=True, stable=True)


def _rank(scores: list[Tensor], minimum: list[int]) -> tuple[Tensor, Tensor, int]:
    """Units of all groups together, what must stay first; the sum of the first n scores for n from 0; how many must."""
    required = torch.cat([_descending(values).argsort() < least for values, least in zip(scores, minimum, strict=True)])
    together = torch.cat(scores).double()
    order = together.masked_fill(required, math.inf).argsort(descending=True, stable=True)
    return order, _sums(together[order]), int(required.sum())


def _sums(values: Tensor) -> Tensor:
    """Of the first n values, for n from 0."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))


def _uniform_curve(scores: list[Tensor], costs: list[float], counts: list[int]) -> _Curve:
    total, worth = torch.zeros(len(counts), dtype=torch.float64), torch.zeros(len(counts), dtype=torch.float64)
    for values, cost in zip(scores, costs, strict=True):
        kept = torch.tensor(counts).clamp_max(len(values))
        total += cost * kept
        worth += _sums(values.double().sort(descending=True).values)[kept]
    return _Curve(total, worth)


def _choose(curves: list[_Curve], budget: float) -> list[int]:
    """One point of each curve, together of the highest value within the budget; the first of each where none is."""
    order = sorted(range(len(curves)), key=lambda index: len(curves[index].costs))
    front, picks = _Curve(*torch.zeros(2, 1, dtype=torch.float64)), torch.zeros(1, 0, dtype=torch.long)
    limit = budget * (1 + SLACK)
    for index in order[:-1]:
        front, picks = _combine(front, picks, curves[index], limit)
        if not len(picks):
            return [0] * len(curves)
    last = curves[order[-1]]
    affordable = torch.searchsorted(last.costs, limit - front.costs, right=True)
    best, where = last.values.cummax(0)
    total = torch.where(affordable > 0, front.values + best[affordable.clamp_min(1) - 1], -math.inf)
    winner = int(total.argmax())
    if total[winner] == -math.inf:
        return [0] * len(curves)
    found = [*picks[winner].tolist(), int(where[affordable[winner] - 1])]
    return [found[order.index(index)] for index in range(len(curves))]


def _combine(front: _Curve, picks: Tensor, curve: _Curve, limit: float) -> tuple[_Curve, Tensor]:
    """Every choice so far with every point of another curve, less what is over the limit or beaten in both respects."""
    costs = (front.costs[:, None] + curve.costs).flatten()
    values = (front.values[:, None] + curve.values).flatten()
    inside = (costs <= limit).nonzero().flatten()
    # By cost; of equal cost the best first, so that one look back tells whether a choice is beaten.
    inside = inside[values[inside].argsort(descending=True, stable=True)]
    inside = inside[costs[inside].argsort(stable=True)]
    best = torch.nn.functional.pad(values[inside].cummax(0).values, (1, 0), value=-math.inf)[: len(inside)]
    inside = inside[values[inside] > best]
    rows, point = inside // len(curve.costs), inside % len(curve.costs)
    return _Curve(costs[inside], values[inside]), torch.cat([picks[rows], point[:, None]], dim=1)
