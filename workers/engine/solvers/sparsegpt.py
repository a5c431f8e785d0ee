"""Single weights by second order, "SparseGPT" (Frantar and Alistarh, 2023), and a refit of what any cut leaves.

Both make the outputs of a matrix W on its inputs X come near to what they were: they lower tr(D H D^T), D being the
change of W and H = X^T X the Hessian of that error in every row. H is damped by a share of its mean diagonal.
"""

import torch
from torch import Tensor

from service.specs.rounding import nearest
from workers.engine.allocation import blocks, n_of_m

COLUMNS = 128
"""Usual number of columns that are worked on at a time."""


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    *,
    share: float = 0.5,
    pattern: tuple[int, int] | None = None,
    side: int | None = None,
    block_size: int = COLUMNS,
    damping: float = 0.01,
) -> Tensor:
    """The new weights (outputs, inputs) in float32: exact zeros, and what stays makes up for what went.

    Goes through `block_size` columns at a time; of each block the weights are cut that cost least as they are by then.
    Exactly `share` of the matrix is cut, rounded to the nearest. A `pattern` (N, M) keeps N of every M neighbours
    whatever the share; with `side` so many squares of that side are cut. Zeros stay zeros and count. `block_size` is
    a multiple of M and of the side, `hessian` (inputs, inputs). Raises torch.linalg.LinAlgError if `damping` is too
    low for it.
    """
    inverse = _inverse_factor(hessian, damping)
    # Columns of W are rows here, so that every step works on memory that lies together.
    left = weight.float().T.contiguous()
    gone = left == 0
    for begin in range(0, len(left), block_size):
        rows = slice(begin, begin + block_size)
        factor = inverse[rows, rows]
        if pattern is None:
            costs = _costs(left[rows], gone[rows], factor)
            if side is None:
                wanted = nearest(share * gone[: begin + block_size].numel()) - int(gone[:begin].sum())
                gone[rows] |= _lowest(costs, wanted)
            else:
                gone[rows] |= _poorest_squares(costs, begin, side, share)
        errors = _eliminate(left[rows], gone[rows], factor, pattern)
        left[begin + block_size :].addmm_(inverse[rows, begin + block_size :].T, errors, alpha=-1)
    return left.T.contiguous()


def refit(weight: Tensor, target: Tensor, hessian: Tensor, *, steps: int, damping: float = 0.01) -> Tensor:
    """What the nonzero weights of `weight` should be for outputs nearest to those of `target`; zeros stay zeros.

    Conjugate gradients on all rows at once, preconditioned by the diagonal (as in ALPS: Meng et al., 2024): SparseGPT
    changes only weights to the right of a cut, this all of them. Shapes (outputs, inputs), `hessian` (inputs, inputs).
    """
    curvature = _damped(hessian, damping)
    scale = curvature.diagonal()
    keep = weight != 0
    found = weight.float().clone()
    residual = (target.float() - found) @ curvature * keep
    direction = residual / scale
    power = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        change = direction @ curvature * keep
        step = power / (direction * change).sum(1, keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        found += step * direction
        residual -= step * change
        scaled = residual / scale
        before, power = power, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + power / before.clamp_min(torch.finfo(power.dtype).tiny) * direction
    return found


def _damped(hessian: Tensor, damping: float) -> Tensor:
    """H over its mean diagonal, plus the damping; the identity where no input ever differed from zero."""
    mean = hessian.diagonal().mean()
    scaled = hessian / mean if mean > 0 else torch.zeros_like(hessian)
    scaled.diagonal().add_(damping if mean > 0 else 1.0)
    return scaled


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangle U with H^-1 = U^T U; its rows from j on belong to the inverse without the first j inputs."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(hessian.double(), damping)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _costs(block: Tensor, gone: Tensor, factor: Tensor) -> Tensor:
    """By how much the error grows when a weight is cut; below any for what is cut already."""
    return (block / factor.diagonal()[:, None]).square().masked_fill(gone, -1.0)


def _poorest_squares(costs: Tensor, begin: int, side: int, share: float) -> Tensor:
    """Marks the squares that cost least, so many that all up to here are the share of all so far."""
    columns, rows = costs.shape
    down = -(-rows // side)
    before, here = begin // side * down, -(-columns // side) * down
    wanted = nearest(share * (before + here)) - nearest(share * before)
    return ~blocks([costs], side, wanted / here, ranked=False)[0]


def _lowest(costs: Tensor, count: int) -> Tensor:
    """Marks so many of the lowest."""
    chosen = torch.zeros(costs.numel(), dtype=torch.bool, device=costs.device)
    chosen[costs.flatten().topk(max(0, count), largest=False).indices] = True
    return chosen.view_as(costs)


def _eliminate(block: Tensor, gone: Tensor, factor: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Cuts one block (columns, outputs) in place, column after column; returns what later columns have to make up for.

    With a pattern the weights of every group are chosen when their turn comes, after all corrections so far.
    """
    errors = torch.zeros_like(block)
    for index in range(len(block)):
        if pattern is not None and index % pattern[1] == 0:
            group = slice(index, index + pattern[1])
            costs = _costs(block[group], gone[group], factor[group, group])
            gone[group] |= ~n_of_m(costs.T, *pattern).T
        errors[index] = block[index] * gone[index] / factor[index, index]
        block[index:].addr_(factor[index, index:], errors[index], alpha=-1)
        block[index].masked_fill_(gone[index], 0.0)
    return errors
