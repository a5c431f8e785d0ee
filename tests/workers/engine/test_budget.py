"""The knapsack against brute force, and the properties that hold for any scores."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.engine.budget import solve, solve_uniform

Problem = tuple[list[Tensor], list[float], float, list[int]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to three groups of up to four units, in up to three costs, some scores below zero."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    scores = [
        torch.tensor(draw(st.lists(st.integers(-3, 9), min_size=size, max_size=size)), dtype=torch.float32)
        for size in sizes
    ]
    costs = [float(draw(st.sampled_from((1, 3, 7)))) for _ in sizes]
    minimum = [draw(st.integers(0, size)) for size in sizes]
    return scores, costs, float(draw(st.integers(0, 40))), minimum


def cost_of(keep: list[Tensor], costs: list[float]) -> float:
    return sum(cost * int(mask.sum()) for cost, mask in zip(costs, keep, strict=True))


def value_of(keep: list[Tensor], scores: list[Tensor]) -> float:
    return sum(float(values[mask].sum()) for values, mask in zip(scores, keep, strict=True))


def every_mask(size: int, least: int) -> list[Tensor]:
    masks = [torch.tensor(bits) for bits in itertools.product((False, True), repeat=size)]
    return [mask for mask in masks if int(mask.sum()) >= least]


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_other_masks_within_the_budget_are_worth_more(problem: Problem) -> None:
    scores, costs, budget, minimum = problem
    keep = solve(scores, costs, budget, minimum)
    assert all(int(mask.sum()) >= least for mask, least in zip(keep, minimum, strict=True))
    choices = itertools.product(
        *(every_mask(len(values), least) for values, least in zip(scores, minimum, strict=True))
    )
    allowed = [value_of(list(masks), scores) for masks in choices if cost_of(list(masks), costs) <= budget]
    if allowed:
        assert cost_of(keep, costs) <= budget
        assert value_of(keep, scores) == max(allowed)
    else:
        assert [int(mask.sum()) for mask in keep] == minimum


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_other_uniform_masks_within_the_budget_are_worth_more(problem: Problem) -> None:
    scores, costs, budget, minimum = problem
    kinds = ["odd" if index % 2 else "even" for index in range(len(scores))]
    keep = solve_uniform(scores, costs, budget, minimum, kinds)
    options: dict[str, list[tuple[float, float]]] = {}
    for kind in set(kinds):
        mine = [index for index, name in enumerate(kinds) if name == kind]
        least = max(minimum[index] for index in mine)
        options[kind] = []
        for count in range(least, max(len(scores[index]) for index in mine) + 1):
            best = [scores[index].sort(descending=True).values[:count] for index in mine]
            cost = sum(costs[index] * len(values) for index, values in zip(mine, best, strict=True))
            options[kind].append((cost, sum(float(values.sum()) for values in best)))
    sums = [(sum(c for c, _ in picks), sum(v for _, v in picks)) for picks in itertools.product(*options.values())]
    allowed = [value for cost, value in sums if cost <= budget]
    if allowed:
        assert cost_of(keep, costs) <= budget
        assert value_of(keep, scores) == max(allowed)
    for kind in set(kinds):
        counts = {int(keep[i].sum()) for i, name in enumerate(kinds) if name == kind}
        widths = {len(scores[i]) for i, name in enumerate(kinds) if name == kind}
        assert len(counts) == 1 or counts <= widths | {max(counts)}


def test_a_uniform_number_is_one_of_those_allowed() -> None:
    heads, neurons = torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([5.0, 1.0])
    kinds = ["heads", "neurons"]
    free = solve_uniform([heads, neurons], [2.0, 1.0], 8.0, [1, 1], kinds)
    bound = solve_uniform([heads, neurons], [2.0, 1.0], 8.0, [1, 1], kinds, {"heads": (1, 2, 4)})
    assert [[int(mask.sum()) for mask in keep] for keep in (free, bound)] == [[3, 2], [2, 2]]


def test_cheap_units_crowd_out_a_dear_one_only_where_they_are_worth_more() -> None:
    heads, neurons = torch.tensor([5.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    dear = solve([heads, neurons], [4.0, 1.0], 8.0, [1, 1])
    assert [int(mask.sum()) for mask in dear] == [1, 4]
    worth = solve([torch.tensor([5.0, 4.5]), neurons], [4.0, 1.0], 9.0, [1, 1])
    assert [int(mask.sum()) for mask in worth] == [2, 1]


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.75])
def test_a_network_of_real_size_fills_its_budget(kept: float) -> None:
    chance = torch.Generator().manual_seed(1)
    scores = [torch.rand(units, generator=chance) for units in [12, 1536] * 6]
    costs = [53248.0, 768.0] * 6
    budget = kept * sum(cost * len(values) for cost, values in zip(costs, scores, strict=True))
    spent = cost_of(solve(scores, costs, budget, [1] * 12), costs)
    assert budget - 768 < spent <= budget
