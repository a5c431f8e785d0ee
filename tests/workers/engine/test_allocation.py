"""Exact counts, ties, and what always stays."""

import random

import pytest
import torch

from service.specs.rounding import nearest
from workers.engine.allocation import above, allocate, blocks, exact, n_of_m

CASES = [
    ([chance.randint(1, 40) for _ in range(chance.randint(1, 5))], chance.uniform(0.01, 0.99), seed)
    for seed in range(40)
    for chance in [random.Random(seed)]
]
cases = pytest.mark.parametrize(("sizes", "share", "seed"), CASES)


def random_scores(sizes: list[int], seed: int, values: int = 5) -> list[torch.Tensor]:
    """Whole numbers, so that there are many ties."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randint(0, values, (size,), generator=chance).float() for size in sizes]


def test_halves_are_rounded_up() -> None:
    assert [nearest(number) for number in (1.98, 2.5, 3.5, 0.3 * 5, 2.4999)] == [2, 3, 4, 2, 2]


@cases
def test_uniform_cuts_the_share_of_every_group(sizes: list[int], share: float, seed: int) -> None:
    scores = random_scores(sizes, seed)
    for size, mask, values in zip(
        sizes, allocate(scores, sizes, share, ranked=False, comparable=True), scores, strict=True
    ):
        assert int(mask.sum()) == max(1, size - nearest(size * share))
        assert bool(mask.all()) or values[mask].min() >= values[~mask].max()


@cases
def test_ranked_cuts_the_share_of_all_and_empties_no_group(sizes: list[int], share: float, seed: int) -> None:
    masks = allocate(random_scores(sizes, seed), sizes, share, ranked=True, comparable=True)
    assert sum(int(mask.sum()) for mask in masks) == max(len(sizes), sum(sizes) - nearest(sum(sizes) * share))
    assert all(bool(mask.any()) for mask in masks)


def test_later_rounds_count_from_the_original() -> None:
    (mask,) = allocate([torch.arange(6.0)], [10], 0.7, ranked=False, comparable=True)
    assert mask.tolist() == [False, False, False, True, True, True]
    (mask,) = allocate([torch.arange(6.0)], [10], 0.2, ranked=True, comparable=True)
    assert bool(mask.all()), "what an earlier round took does not come back"


def test_only_comparable_scores_are_ranked_as_they_are() -> None:
    scores = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([100.0, 200.0, 300.0, 400.0])]
    raw = allocate(scores, [4, 4], 0.375, ranked=True, comparable=True)
    assert [int(mask.sum()) for mask in raw] == [1, 4]
    scaled = allocate(scores, [4, 4], 0.5, ranked=True, comparable=False)
    assert [int(mask.sum()) for mask in scaled] == [2, 2]


@cases
@pytest.mark.parametrize("ranked", [True, False])
def test_single_weights_are_counted_exactly(sizes: list[int], share: float, ranked: bool, seed: int) -> None:
    scores = random_scores(sizes, seed)
    masks = exact(scores, share, ranked=ranked)
    if ranked:
        assert sum(int((~mask).sum()) for mask in masks) == nearest(sum(sizes) * share)
    else:
        assert [int((~mask).sum()) for mask in masks] == [nearest(size * share) for size in sizes]


def test_ties_go_by_position() -> None:
    (mask,) = exact([torch.ones(6)], 0.5, ranked=False)
    assert mask.tolist() == [True] * 3 + [False] * 3


def test_two_of_four_in_every_row_and_at_its_end() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 1.0]])
    mask = n_of_m(scores, 2, 4)
    assert mask.tolist() == [
        [True, True, False, False, False, True, True],
        [False, False, True, True, True, True, False],
    ]
    assert bool(n_of_m(scores, 4, 4).all())


@pytest.mark.parametrize("columns", [8, 16, 19])
def test_four_of_eight_keeps_the_best_four_of_each_run(columns: int) -> None:
    scores = torch.rand((5, columns), generator=torch.Generator().manual_seed(0))
    mask = n_of_m(scores, 4, 8)
    for values, kept in zip(scores.split(8, 1), mask.split(8, 1), strict=True):
        assert kept.sum(1).tolist() == [min(4, kept.shape[1])] * 5
        assert bool((values.masked_fill(~kept, 2.0).amin(1) > values.masked_fill(kept, -1.0).amax(1)).all())


def test_above_a_threshold_and_never_nothing() -> None:
    scores = torch.tensor([0.1, 0.5, 0.3, 0.4])
    assert above(scores, 0.3).tolist() == [False, True, False, True]
    assert above(scores, 0.9).tolist() == [False, True, False, False]


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_blocks_are_cut_whole_and_counted_exactly(share: float, ranked: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    scores = [torch.rand(shape, generator=chance) for shape in ((8, 12), (6, 9))]
    cut = []
    for matrix, mask in zip(scores, blocks(scores, 4, share, ranked=ranked), strict=True):
        assert mask.shape == matrix.shape
        tiles = [tile for rows in mask.split(4, 0) for tile in rows.split(4, 1)]
        assert all(bool(tile.all()) or not bool(tile.any()) for tile in tiles)
        cut.append(sum(not bool(tile.any()) for tile in tiles))
    assert sum(cut) == nearest(12 * share) if ranked else cut == [nearest(6 * share)] * 2


def test_the_block_of_the_lowest_mean_goes_also_at_the_edge() -> None:
    scores = torch.full((4, 6), 2.0)
    scores[:2, 4:] = 1.0
    scores[2:, :2] = torch.tensor([[0.0, 0.0], [0.0, 7.0]])
    for columns in (6, 5):
        (mask,) = blocks([scores[:, :columns]], 2, 1 / 6, ranked=False)
        assert (~mask).nonzero().tolist() == [[row, column] for row in (0, 1) for column in range(4, columns)]
