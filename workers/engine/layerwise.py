"""Cuts single weights of a stack of blocks by what flows through them, one block at a time.

Every block sees what the blocks before it give after their cuts, and within a block every matrix what those before it
give, so that each makes up for what was lost on the way (Frantar and Alistarh, 2023). At any time there is one set of
hidden states, and the statistic of one input of one block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from workers.engine.failures import EngineError
from workers.engine.slicing import columns_of, matrix_of, projections_in
from workers.engine.solvers.sparsegpt import refit, sparsegpt
from workers.engine.solvers.wanda import keep_mask, wanda_scores

PANELS = 4
"""Into how many panels of columns X^T X is divided; it is symmetric, and what lies below them is never computed."""

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside its hidden states: positions, masks."""


class Method(Protocol):
    """How the new weights of a matrix are found."""

    @property
    def pairs(self) -> bool:
        """Whether it needs X^T X rather than its diagonal alone, which is far cheaper."""

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """New weights (outputs, inputs), float32, from the old and X^T X (inputs, inputs) or its diagonal (inputs,)."""


@dataclass(frozen=True)
class Refitted:
    """What methods share: how much is cut, and in how many steps what stays is refitted by least squares (0: not)."""

    share: float = 0.5
    pattern: tuple[int, int] | None = None
    side: int | None = None
    refit_steps: int = 10


class Wanda(Refitted):
    """Cuts by activation (Sun et al., 2024)."""

    @property
    def pairs(self) -> bool:
        """Only the refit needs them."""
        return self.refit_steps > 0

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The new weights."""
        squares = statistic.diagonal() if self.pairs else statistic
        cut = weight * keep_mask(wanda_scores(weight, squares), self.share, self.pattern, self.side)
        return refit(cut, weight, statistic, steps=self.refit_steps) if self.pairs else cut


class SparseGpt(Refitted):
    """Cuts by second order (Frantar and Alistarh, 2023)."""

    @property
    def pairs(self) -> bool:
        """Always."""
        return True

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The new weights."""
        cut = sparsegpt(weight, statistic, share=self.share, pattern=self.pattern, side=self.side)
        return refit(cut, weight, statistic, steps=self.refit_steps) if self.refit_steps else cut


@torch.no_grad()
def prune_blocks(
    network: nn.Module,
    blocks: nn.ModuleList,
    batches: Sequence[dict[str, Tensor]],
    method: Method,
    progress: Callable[[float], None],
    *,
    bfloat16: bool = False,
) -> None:
    """Cuts every Linear and Conv1D inside `blocks` of `network`, in place; `progress` gets the share done, to 1.

    `batches` are what the network takes: `input_ids` and, where rows are padded, `attention_mask`. The network keeps
    its types of numbers; the block at work is in float32, with products in bfloat16 where that is asked for. Raises
    EngineError NOT_FINITE.
    """
    network.eval()
    states, calls = first_inputs(network, blocks, batches)
    masks = [batch.get("attention_mask") for batch in batches]
    for number, block in enumerate(blocks):
        run = BlockRun(block, states, calls[number], masks, bfloat16)
        dtypes = {linear: matrix_of(linear).dtype for linear in projections_in(block)}
        with in_float32(block):
            stages = run.stages()
            for place, stage in enumerate(stages, start=1):
                statistic = run.statistic(stage[0], pairs=method.pairs)
                for linear in stage:
                    matrix = matrix_of(linear)
                    # Rounded now, so that later blocks see the weights that are saved.
                    matrix.copy_(method(matrix.detach(), statistic).to(dtypes[linear]))
                progress((number + place / len(stages)) / len(blocks))
            if number + 1 < len(blocks):
                run.advance()


class _Stop(Exception):
    """Ends a pass where the rest of it is of no use."""


def first_inputs(
    network: nn.Module, blocks: nn.ModuleList, batches: Sequence[dict[str, Tensor]]
) -> tuple[list[Tensor], list[list[Call]]]:
    """Hidden states (rows, tokens, width) that enter the first block, per batch; other arguments, per block and batch.

    No block is computed but the first, once, to learn how it answers; some are called with a mask of their own kind.
    """
    states: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in blocks]
    answers_tuple: list[bool] = []

    def recorder(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if number == 0:
                states.append(state)
            if not answers_tuple:
                answers_tuple.append(isinstance(forward(state, *rest, **kwargs), tuple))
            calls[number].append((rest, kwargs))
            if number + 1 == len(blocks):
                raise _Stop
            return (state,) if answers_tuple[0] else state

        return record

    extra = {"use_cache": False} if hasattr(network, "config") else {}
    try:
        for number, block in enumerate(blocks):
            block.forward = recorder(number, block.forward)
        for batch in batches:
            with suppress(_Stop):
                network(**batch, **extra)
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
    return states, calls


@contextmanager
def in_float32(block: nn.Module) -> Iterator[None]:
    """Holds the parameters of a block in float32 for the time being."""
    before = [(parameter, parameter.dtype) for parameter in block.parameters()]
    try:
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)


class BlockRun:
    """One block with everything that it is fed with."""

    def __init__(
        self,
        block: nn.Module,
        states: list[Tensor],
        calls: list[Call],
        masks: Sequence[Tensor | None],
        bfloat16: bool = False,
    ) -> None:
        self.block, self.states, self.calls, self.masks, self.bfloat16 = block, states, calls, masks, bfloat16

    def stages(self) -> list[list[nn.Module]]:
        """The Linears in the order they are called; those fed with the same tensor stand together.

        One that the first batch does not reach stands alone at the end.
        """
        found: list[tuple[Tensor, list[nn.Module]]] = []

        def see(linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            stage = next((stage for known, stage in found if known is args[0]), None)
            if stage is None:
                found.append((args[0], [linear]))
            else:
                stage.append(linear)

        linears = projections_in(self.block)
        handles = [linear.register_forward_pre_hook(see) for linear in linears]
        try:
            self._call(0)
        finally:
            for handle in handles:
                handle.remove()
        stages = [stage for _, stage in found]
        reached = {linear for stage in stages for linear in stage}
        return stages + [[linear] for linear in linears if linear not in reached]

    def statistic(self, linear: nn.Module, *, pairs: bool) -> Tensor:
        """X^T X over all tokens that count, or its diagonal, in float32; ones where the Linear was never reached.

        Every pass ends at the Linear, so that the four of a usual block take little longer than one.
        """
        width = columns_of(linear)
        total = torch.zeros((width, width) if pairs else width, device=matrix_of(linear).device)
        mask: Tensor | None = None

        def observe(_linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._add(total, _tokens(args[0], mask))
            raise _Stop

        handle = linear.register_forward_pre_hook(observe)
        try:
            for index, mask in enumerate(self.masks):  # noqa: B007 # the hook reads it
                with suppress(_Stop):
                    self._call(index)
        finally:
            handle.remove()
        if not bool(total.isfinite().all()):
            raise EngineError("NOT_FINITE", "what flows through the network is not finite: it is broken", blame="user")
        if not bool(total.any()):
            return torch.eye(width, device=total.device) if pairs else torch.ones_like(total)
        return total.triu_().add_(total.triu(1).T) if pairs else total

    def advance(self) -> None:
        """Replaces the hidden states by what the block makes of them."""
        for index, state in enumerate(self.states):
            self.states[index] = self._call(index).to(state.dtype)

    def _call(self, index: int) -> Tensor:
        args, kwargs = _as_float32(self.calls[index])
        with torch.autocast(self.states[index].device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.block(self.states[index].float(), *args, **kwargs)
        found = output[0] if isinstance(output, tuple) else output
        assert isinstance(found, Tensor)
        return found

    def _add(self, total: Tensor, rows: Tensor) -> None:
        rows = rows.float()
        if total.dim() == 1:
            total.add_(rows.square().sum(0))
            return
        panel = -(-len(total) // PANELS)
        with torch.autocast(total.device.type, enabled=False), _fast_products(self.bfloat16):
            for begin in range(0, len(total), panel):
                total[begin : begin + panel, begin:].addmm_(rows[:, begin : begin + panel].T, rows[:, begin:])


@contextmanager
def _fast_products(bfloat16: bool) -> Iterator[None]:
    """Rounds the factors of float32 products to bfloat16; the sums stay exact, so that X^T X is still one of some X."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tokens(given: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs as (tokens, width), without those that are only padding."""
    rows = given.flatten(0, -2)
    return rows if mask is None or len(rows) != mask.numel() else rows[mask.flatten().bool()]


def _as_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_as_float32(item) for item in value)
    return {name: _as_float32(item) for name, item in value.items()} if isinstance(value, dict) else value
