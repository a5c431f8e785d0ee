"""What a stack of blocks is fed with: hidden states, and what every block is called with beside them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside its hidden states: positions, masks, and in a decoder what the encoder gave."""


class Stop(Exception):
    """Ends a pass where the rest of it is of no use."""


@dataclass(frozen=True)
class Stream:
    """What flows through a stack of blocks, batch by batch."""

    states: list[Tensor]
    """(rows, tokens, width): what enters the next block; replaced as it goes on."""
    calls: list[list[Call]]
    """By block and batch."""
    own: Sequence[Tensor | None]
    """Which tokens of the stack are no padding, (rows, tokens); None where all of them count."""
    outer: Sequence[Tensor | None]
    """The same of the tokens whose states came from elsewhere: those of the encoder."""

    def again(self) -> "Stream":
        """The same stream, to be run through without a change to this one."""
        return replace(self, states=list(self.states))


def stream_into(
    network: nn.Module,
    blocks: nn.ModuleList,
    batches: Sequence[dict[str, Tensor]],
    counted: Sequence[Tensor | None] | None = None,
) -> Stream:
    """What `network` feeds `blocks` with; `counted` says which of their tokens are no padding, else the masks do."""
    states, calls = first_inputs(network, blocks, batches)
    masks = [batch.get("attention_mask") for batch in batches]
    return Stream(states, calls, masks if counted is None else counted, masks)


def first_inputs(
    network: nn.Module, blocks: nn.ModuleList, batches: Sequence[dict[str, Tensor]]
) -> tuple[list[Tensor], list[list[Call]]]:
    """Hidden states (rows, tokens, width) that enter the first block, per batch; other arguments, per block and batch.

    Blocks are called with masks of their own kind, so that the network has to pass through all of them; none is
    computed but the first, to learn how it answers, and wherever it answers with more than states: T5's gives the
    biases of relative positions that the others are called with.
    """
    recorder = _Recorder(len(blocks))
    extra = {"use_cache": False} if hasattr(network, "config") else {}
    try:
        for number, block in enumerate(blocks):
            block.forward = recorder.of(number, block.forward)
        for batch in batches:
            recorder.shared.next_batch()
            with suppress(Stop):
                network(**batch, **extra)
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
    return recorder.states, recorder.calls


class _Recorder:
    """Stands for the blocks of a network and writes down what they are called with."""

    def __init__(self, blocks: int) -> None:
        self.states: list[Tensor] = []
        self.calls: list[list[Call]] = [[] for _ in range(blocks)]
        self.shared = _Shared()
        self._beside: tuple[Any, ...] | None = None
        """What the first block answered beside its states; None where it answers with them alone."""

    def of(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass of a block that hands on its states."""

        def record(*args: Any, **kwargs: Any) -> Any:
            state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if number == 0:
                if not self.states or self._beside:
                    answer = forward(state, *rest, **kwargs)
                    self._beside = answer[1:] if isinstance(answer, tuple) else None
                self.states.append(state)
            self.calls[number].append(self.shared((rest, kwargs)))
            if number + 1 == len(self.calls):
                raise Stop
            return state if self._beside is None else (state, *self._beside)

        return record


class _Shared:
    """Tensors that batches have in common, each held once: masks of long rows take more memory than their states."""

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._now: dict[int, tuple[Tensor, Tensor]] = {}

    def next_batch(self) -> None:
        """A new batch begins, to be compared with the one that ends here."""
        self._before, self._now = [held for _, held in self._now.values()], {}

    def __call__(self, value: Any) -> Any:
        """The value, with every tensor replaced by an equal one of the batch before."""
        return each_tensor(value, self._held)

    def _held(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._now:
            equal = (held for held in self._before if held.dtype == tensor.dtype and torch.equal(held, tensor))
            self._now[id(tensor)] = (tensor, next(equal, tensor))
        return self._now[id(tensor)][1]


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples and dictionaries with every tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(each_tensor(item, change) for item in value)
    return {name: each_tensor(item, change) for name, item in value.items()} if isinstance(value, dict) else value
