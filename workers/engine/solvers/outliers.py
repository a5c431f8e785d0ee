"""Shares of blocks by their outliers, "OWL" (Yin et al., 2024): a block with more of them loses fewer weights.

Perplexity of SmolLM2-135M by Wanda without a refit, calibrated with 32 blocks of 512 tokens, against one share for all:
105.9 became 103.8 at 50 % and 276.7 became 248.3 at 60 %; by SparseGPT with its refit, from 8 such blocks, 90.6 became
88.9 and 146.9 became 143.0. Outliers against the mean of a whole block, as in the paper, did harm: 109.5 and 287.6 by
Wanda.
"""

from collections.abc import Sequence

from torch import Tensor

FACTOR = 5.0
"""How many times the mean of its matrix a score must be to count as an outlier."""
SPREAD = 0.08
"""How far the shares of two blocks may lie apart, halved; of the paper."""


def outlier_ratio(scores: Sequence[Tensor], factor: float = FACTOR) -> float:
    """The part of a block's scores, one tensor for each matrix, above `factor` times the mean of their matrix.

    Not of their block, as in the paper: what the matrices of a block are fed with differs in scale.
    """
    outliers = sum(int((values > factor * values.mean()).sum()) for values in scores)
    return outliers / sum(values.numel() for values in scores)


def block_shares(ratios: Sequence[float], sizes: Sequence[int], share: float, spread: float = SPREAD) -> list[float]:
    """Which share each block loses so that all lose `share`: evenly less the higher its outlier ratio is.

    The lowest and the highest lie twice `spread` apart, or as far as leaves every share in [0, 1]; `sizes` are the
    blocks' numbers of weights, by which the shares average to `share`.
    """
    lowest, highest = min(ratios), max(ratios)
    if lowest == highest:
        return [share] * len(ratios)
    steps = [2 * spread * (ratio - lowest) / (highest - lowest) for ratio in ratios]
    mean = sum(step * size for step, size in zip(steps, sizes, strict=True)) / sum(sizes)
    room = min(share, 1 - share) / max(abs(step - mean) for step in steps)
    return [share - min(1.0, room) * (step - mean) for step in steps]
