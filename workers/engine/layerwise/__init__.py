"""Cuts single weights of a stack of blocks by what flows through them, one block at a time.

Every block sees what the blocks before it give after their cuts, and within a block every matrix what those before it
give, so that each makes up for what was lost on the way (Frantar and Alistarh, 2023). At any time there is one set of
hidden states, and the statistic of one input of one block. Where blocks lose different shares, what tells them apart
is measured on the whole network before the first cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from workers.engine.layerwise.block_run import BlockRun
from workers.engine.layerwise.feed import Stream, stream_into
from workers.engine.layerwise.methods import METHODS, Method, SparseGpt, Wanda, method_of
from workers.engine.slicing import matrix_of, projections_in
from workers.engine.solvers.outliers import block_shares, outlier_ratio
from workers.engine.solvers.wanda import wanda_scores

__all__ = ["METHODS", "Blocks", "Method", "SparseGpt", "Wanda", "cut_blocks", "method_of", "prune_blocks"]

SURVEYED = 0.2
"""Share of the progress that is reached when outliers were counted: about one pass of six."""

Opened: TypeAlias = tuple[nn.Module, Mapping[nn.Module, torch.dtype]]
"""A block in float32, and the types that the weights of its projections are kept in."""


class Blocks(Protocol):
    """A stack of blocks, of which one is at work."""

    def __len__(self) -> int:
        """How many there are."""

    def open(self, number: int) -> AbstractContextManager[Opened]:
        """A block to work with for the time being."""

    def save(self, number: int, block: nn.Module) -> None:
        """Keeps the weights of an open block's projections."""


class LiveBlocks:
    """Blocks of a network in memory, whose weights are rounded to `stored`, or where it is None to their own types."""

    def __init__(self, blocks: nn.ModuleList, stored: torch.dtype | None = None) -> None:
        self._blocks, self._stored = blocks, stored

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def open(self, number: int) -> Iterator[Opened]:
        """Holds the parameters of the block in float32 for the time being."""
        block = self._blocks[number]
        dtypes = {linear: self._stored or matrix_of(linear).dtype for linear in projections_in(block)}
        before = [(parameter, parameter.dtype) for parameter in block.parameters()]
        try:
            for parameter, _ in before:
                parameter.data = parameter.data.float()
            yield block, dtypes
        finally:
            for parameter, dtype in before:
                parameter.data = parameter.data.to(dtype)

    def save(self, number: int, block: nn.Module) -> None:
        """They are cut in place."""


def prune_blocks(
    network: nn.Module,
    blocks: nn.ModuleList,
    batches: Sequence[dict[str, Tensor]],
    method: Method,
    progress: Callable[[float], None],
    *,
    counted: Sequence[Tensor | None] | None = None,
    stored: torch.dtype | None = None,
    bfloat16: bool = False,
) -> None:
    """Cuts every Linear and Conv1D inside `blocks` of `network`, in place; `progress` gets the share done, to 1.

    `batches` are what the network takes: `input_ids` and, where rows are padded, `attention_mask`; a decoder that reads
    an encoder takes `decoder_input_ids` too, of which those `counted`, (rows, tokens), are no padding. The network
    keeps its types of numbers, and new weights are rounded to `stored`, in which they will be saved; the block at work
    is in float32, with products in bfloat16 where that is asked for. Raises EngineError NOT_FINITE.
    """
    network.eval()
    with torch.no_grad():
        stream = stream_into(network, blocks, batches, counted)
        cut_blocks(LiveBlocks(blocks, stored), stream, method, progress, bfloat16=bfloat16)


@torch.no_grad()
def cut_blocks(
    blocks: Blocks, stream: Stream, method: Method, progress: Callable[[float], None], *, bfloat16: bool
) -> None:
    """Cuts every block after another; `stream` is used up."""
    shares, begun = [method.share] * len(blocks), 0.0
    if method.ranks_blocks:
        shares, begun = _shares(blocks, stream.again(), method, progress, bfloat16), SURVEYED
    for number, share in enumerate(shares):
        with blocks.open(number) as (block, dtypes):
            run, own = BlockRun(block, stream, number, bfloat16), method.with_share(share)
            stages = run.stages()
            for place, stage in enumerate(stages, start=1):
                _solve(run, stage, own, dtypes)
                progress(begun + (1 - begun) * (number + place / len(stages)) / len(blocks))
            blocks.save(number, block)
            if number + 1 < len(blocks):
                run.advance()


def _solve(run: BlockRun, stage: list[nn.Module], method: Method, dtypes: Mapping[nn.Module, torch.dtype]) -> None:
    """New weights for projections that are fed with the same."""
    statistic = run.statistic(stage[0], pairs=method.pairs)
    for linear in stage:
        matrix = matrix_of(linear)
        # Rounded now, so that later blocks see the weights that are saved; a zero loses its sign.
        matrix.copy_(method(matrix.detach(), statistic).to(dtypes[linear])).add_(0.0)


def _shares(
    blocks: Blocks, stream: Stream, method: Method, progress: Callable[[float], None], bfloat16: bool
) -> list[float]:
    """Which share each block loses, by the outliers among what it would be cut by (Yin et al., 2024)."""
    ratios, sizes = [], []
    for number in range(len(blocks)):
        with blocks.open(number) as (block, _):
            squares = BlockRun(block, stream, number, bfloat16).survey()
            scores = [wanda_scores(matrix_of(linear).detach(), total) for linear, total in squares.items()]
            ratios.append(outlier_ratio(scores))
            sizes.append(sum(values.numel() for values in scores))
        progress(SURVEYED * (number + 1) / len(blocks))
    return block_shares(ratios, sizes, method.share, method.spread)
