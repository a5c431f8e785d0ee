"""The solvers, on random matrices and inputs that hang together."""

import pytest
import torch
from torch import Tensor

from service.specs.rounding import nearest
from workers.engine.layerwise.methods import SparseGpt
from workers.engine.solvers.outliers import block_shares, outlier_ratio
from workers.engine.solvers.sparsegpt import refit, sparsegpt
from workers.engine.solvers.wanda import keep_mask, wanda_scores

PATTERNS = [None, (2, 4), (4, 8)]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hessian() -> Tensor:
    chance = torch.Generator().manual_seed(1)
    mixed = torch.randn(400, 96, generator=chance) @ torch.randn(96, 96, generator=chance)
    inputs = (mixed / 10 + torch.randn(400, 1, generator=chance)) * torch.rand(96, generator=chance)
    return inputs.T @ inputs


def error(found: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """Squared distance of the outputs from those before."""
    change = found - weight
    return float(((change @ hessian) * change).sum())


def by_wanda(weight: Tensor, hessian: Tensor, pattern: tuple[int, int] | None = None) -> Tensor:
    return weight * keep_mask(wanda_scores(weight, hessian.diagonal()), 0.5, pattern)


def test_wanda_is_weight_times_norm_of_the_input(weight: Tensor) -> None:
    inputs = torch.randn(30, 96, generator=torch.Generator().manual_seed(2))
    scores = wanda_scores(weight, inputs.square().sum(0))
    for row, column in ((0, 0), (5, 41), (47, 95)):
        assert float(scores[row, column]) == pytest.approx(float(weight[row, column].abs() * inputs[:, column].norm()))


def test_wanda_compares_within_rows(weight: Tensor) -> None:
    scores = wanda_scores(weight, torch.rand(96, generator=torch.Generator().manual_seed(3)))
    keep = keep_mask(scores, 0.25)
    for row in range(48):
        lowest = set(sorted(range(96), key=lambda column: float(scores[row, column]))[:24])
        assert {column for column in range(96) if not keep[row, column]} == lowest


@pytest.mark.parametrize("share", [0.0, 0.1, 0.333, 0.5, 0.77, 1.0])
def test_the_share_is_exact(weight: Tensor, hessian: Tensor, share: float) -> None:
    wanted = round(48 * 96 * share)
    assert int((~keep_mask(weight.abs(), share)).sum()) == wanted
    for block_size in (16, 128):
        assert int((sparsegpt(weight, hessian, share=share, block_size=block_size) == 0).sum()) == wanted


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
def test_n_of_m_holds_in_every_row(weight: Tensor, hessian: Tensor, pattern: tuple[int, int]) -> None:
    kept, of = pattern
    for found in (by_wanda(weight, hessian, pattern), sparsegpt(weight, hessian, pattern=pattern, block_size=32)):
        assert ((found != 0).unflatten(1, (-1, of)).sum(-1) == kept).all()


def test_columns_that_make_no_whole_group_keep_at_most_n(weight: Tensor, hessian: Tensor) -> None:
    found = sparsegpt(weight[:, :95], hessian[:95, :95], pattern=(2, 4), block_size=32)
    assert ((found[:, 92:] != 0).sum(1) == 2).all()


def test_squares_go_as_a_whole(weight: Tensor, hessian: Tensor) -> None:
    for keep in (keep_mask(weight.abs(), 0.5, side=4), sparsegpt(weight, hessian, side=4, block_size=32) != 0):
        squares = keep.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).sum((1, 3))
        assert sorted(set(squares.flatten().tolist())) == [0, 16]
        assert keep.float().mean() == 0.5


@pytest.mark.parametrize("side", [3, 48, 200, 256])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_so_many_squares_of_any_side_go(side: int, share: float) -> None:
    chance = torch.Generator().manual_seed(4)
    wide, inputs = torch.randn(300, 520, generator=chance), torch.randn(600, 520, generator=chance)
    found = SparseGpt(share=share, side=side, refit_steps=0)(wide, inputs.T @ inputs)
    squares = [square for strip in (found != 0).split(side) for square in strip.split(side, dim=1)]
    assert all(bool(square.all()) or not bool(square.any()) for square in squares)
    assert sum(not bool(square.any()) for square in squares) == nearest(share * len(squares))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_second_order_beats_wanda_and_wanda_beats_magnitude(
    weight: Tensor, hessian: Tensor, pattern: tuple[int, int] | None
) -> None:
    by_magnitude = weight * keep_mask(weight.abs(), 0.5, pattern)
    errors = [
        error(found, weight, hessian)
        for found in (sparsegpt(weight, hessian, pattern=pattern), by_wanda(weight, hessian, pattern), by_magnitude)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_refit_never_hurts_and_keeps_the_zeros(
    weight: Tensor, hessian: Tensor, pattern: tuple[int, int] | None
) -> None:
    for cut in (sparsegpt(weight, hessian, pattern=pattern), by_wanda(weight, hessian, pattern)):
        found = refit(cut, weight, hessian, steps=10)
        assert torch.equal(found == 0, cut == 0)
        assert error(found, weight, hessian) < 0.95 * error(cut, weight, hessian)


def test_a_refit_ends_at_the_least_squares_solution(weight: Tensor, hessian: Tensor) -> None:
    damping = 0.1
    found = refit(by_wanda(weight, hessian), weight, hessian, steps=200, damping=damping)
    curvature = hessian + damping * hessian.diagonal().mean() * torch.eye(96)
    for row in range(0, 48, 8):
        kept = found[row] != 0
        exact = torch.linalg.solve(curvature[kept][:, kept].double(), (curvature[kept] @ weight[row]).double())
        assert torch.allclose(found[row, kept].double(), exact, rtol=1e-3, atol=1e-3)


def test_zeros_stay_zeros_and_count(weight: Tensor, hessian: Tensor) -> None:
    first = sparsegpt(weight, hessian, share=0.25, block_size=32)
    second = sparsegpt(first, hessian, share=0.5, block_size=32)
    assert bool((second == 0)[first == 0].all())
    assert int((second == 0).sum()) == 48 * 96 // 2


def test_inputs_that_never_come_are_cut_first(weight: Tensor) -> None:
    squares = torch.ones(96)
    squares[10] = 0
    assert (sparsegpt(weight, squares.diag(), share=0.1, damping=1e-6)[:, 10] == 0).all()
    assert sparsegpt(weight, torch.zeros(96, 96)).isfinite().all()


def test_the_scale_of_the_inputs_does_not_matter(weight: Tensor, hessian: Tensor) -> None:
    for found in (sparsegpt, lambda *given: refit(sparsegpt(*given), weight, given[1], steps=5)):
        assert torch.allclose(found(weight, hessian * 2.0**-40), found(weight, hessian), rtol=1e-4, atol=1e-5)


def test_outliers_are_counted_against_the_mean_of_their_matrix() -> None:
    scores = [torch.tensor([[1.0, 1.0], [1.0, 9.0]]), torch.tensor([300.0, 100.0])]
    assert outlier_ratio(scores, factor=2.0) == pytest.approx(1 / 6)
    assert outlier_ratio(scores, factor=1.2) == pytest.approx(2 / 6)
    assert outlier_ratio(scores, factor=4.0) == 0


@pytest.mark.parametrize("share", [0.02, 0.5, 0.6, 0.97])
def test_shares_average_to_what_was_asked_and_fall_with_outliers(share: float) -> None:
    ratios, sizes = [0.01, 0.04, 0.02, 0.03], [100, 300, 100, 200]
    shares = block_shares(ratios, sizes, share, spread=0.08)
    assert sum(part * size for part, size in zip(shares, sizes, strict=True)) / sum(sizes) == pytest.approx(share)
    assert sorted(shares, reverse=True) == [shares[0], shares[2], shares[3], shares[1]]
    assert min(shares) >= 0 and max(shares) <= 1
    assert max(shares) - min(shares) == pytest.approx(0.16) or share in (0.02, 0.97)


def test_blocks_that_are_alike_lose_alike() -> None:
    assert block_shares([0.25, 0.25], [4, 8], 0.75) == [0.75, 0.75]
