"""One block at work: what enters its projections, and what it hands on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.engine.failures import EngineError
from workers.engine.layerwise.feed import Stop, Stream, each_tensor
from workers.engine.slicing import columns_of, matrix_of, projections_in

PANELS = 4
"""Into how many panels of columns X^T X is divided; it is symmetric, and what lies below them is never computed."""


class BlockRun:
    """One block, the `number`th of its stack, with everything that it is fed with."""

    def __init__(self, block: nn.Module, stream: Stream, number: int, bfloat16: bool = False) -> None:
        self.block, self.stream, self.bfloat16 = block, stream, bfloat16
        self._calls = stream.calls[number]
        self._outside: list[Tensor] = []
        """What the block is called with now beside its states."""

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
        with _hooked(linear.register_forward_pre_hook(see) for linear in linears):
            self._call(0)
        stages = [stage for _, stage in found]
        reached = {linear for stage in stages for linear in stage}
        return stages + [[linear] for linear in linears if linear not in reached]

    def statistic(self, linear: nn.Module, *, pairs: bool) -> Tensor:
        """X^T X over all tokens that count, or its diagonal, in float32; ones where the Linear was never reached.

        Every pass ends at the Linear, so that the four of a usual block take little longer than one.
        """
        width = columns_of(linear)
        total = torch.zeros((width, width) if pairs else width, device=matrix_of(linear).device)
        index = 0

        def observe(_linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._add(total, self._counted(args[0], index))
            raise Stop

        with _hooked([linear.register_forward_pre_hook(observe)]):
            for index in range(len(self.stream.states)):
                with suppress(Stop):
                    self._call(index)
        _check(total)
        if not bool(total.any()):
            return torch.eye(width, device=total.device) if pairs else torch.ones_like(total)
        return total.triu_().add_(total.triu(1).T) if pairs else total

    def survey(self) -> dict[nn.Module, Tensor]:
        """The diagonals of X^T X of all Linears, from one pass that advances the states too."""
        totals = {
            linear: torch.zeros(columns_of(linear), device=matrix_of(linear).device)
            for linear in projections_in(self.block)
        }
        index = 0

        def observe(linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._add(totals[linear], self._counted(args[0], index))

        with _hooked(linear.register_forward_pre_hook(observe) for linear in totals):
            for index in range(len(self.stream.states)):
                self._advance(index)
        for total in totals.values():
            _check(total)
        return {linear: total if bool(total.any()) else torch.ones_like(total) for linear, total in totals.items()}

    def advance(self) -> None:
        """Replaces the hidden states by what the block makes of them."""
        for index in range(len(self.stream.states)):
            self._advance(index)

    def _advance(self, index: int) -> None:
        self.stream.states[index] = self._call(index).to(self.stream.states[index].dtype)

    def _call(self, index: int) -> Tensor:
        args, kwargs = each_tensor(self._calls[index], _as_float32)
        self._outside = []
        each_tensor((args, kwargs), self._note)
        state = self.stream.states[index]
        with torch.autocast(state.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.block(state.float(), *args, **kwargs)
        found = output[0] if isinstance(output, tuple) else output
        assert isinstance(found, Tensor)
        return found

    def _note(self, tensor: Tensor) -> Tensor:
        self._outside.append(tensor)
        return tensor

    def _counted(self, given: Tensor, index: int) -> Tensor:
        """Inputs as (tokens, width), without those that are only padding."""
        # Cross-attention reads the encoder's states as they came, whose tokens are not those of the stack.
        outside = any(given is tensor for tensor in self._outside)
        mask = (self.stream.outer if outside else self.stream.own)[index]
        rows = given.flatten(0, -2)
        return rows if mask is None or len(rows) != mask.numel() else rows[mask.flatten().bool()]

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
def _hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


@contextmanager
def _fast_products(bfloat16: bool) -> Iterator[None]:
    """Rounds the factors of float32 products to bfloat16; the sums stay exact, so that X^T X is still one of some X."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check(total: Tensor) -> None:
    if not bool(total.isfinite().all()):
        raise EngineError("NOT_FINITE", "what flows through the network is not finite: it is broken", blame="user")


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
