"""Repair: what is left of a projection takes over the work of what goes, by least squares; reads rows, no labels.

A head or a neuron is a run of input columns of an output projection. Before it is cut, the weights of the columns that
stay, and the bias, are set so that the projection's outputs stay as close as they can to what they were. The inputs
are those of the network as it is, so that attentions and feed-forward parts are solved one by one, each in closed form
(optimal brain surgery by units: Kurtic et al., 2023; reconstruction of either part alone: Park et al., 2024). Fitting
each part to the inputs that the parts before it give after their cut was measured too: it overfits and does worse.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.engine.slicing import columns_of, matrix_of, runs
from workers.engine.structures.structure import Group, Structure
from workers.engine.tasks.task import Batch, forward

DAMPING = 1e-2
"""How strongly weights are held to what they were, as a share of the mean square of an input."""
MOMENTS_AT_ONCE = 1 << 29
"""Bytes of second moments that one pass over the rows may gather."""
IGNORED = -100
"""Label of positions that are padding in a decoder."""


@torch.no_grad()
def repair(
    network: PreTrainedModel,
    cuts: Sequence[tuple[Structure, list[Tensor]]],
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> None:
    """Rewrites, in place, the projections that `cuts` are about to shorten; call it before `Structure.cut`.

    A cut is a structure and its masks: booleans of (units,) per group, False for what goes. Columns that go are left as
    they are. `batches` is read once per gigabyte or so of second moments.
    """
    jobs = [
        (group, output, mask)
        for structure, keep in cuts
        for group, mask in zip(structure.groups(network), keep, strict=True)
        for output in group.outputs
        if not bool(mask.all())
    ]
    training = network.training
    network.train(False)
    solved: list[Tensor] = []
    for portion in _portions(jobs):
        moments = [Moments(output, group.stack) for group, output, _ in portion]
        with watching(moments):
            for batch in batches:
                for moment in moments:
                    moment.batch = batch
                forward(network, batch)
        solved += [
            solution(output, moment.total, mask, damping)
            for (_, output, mask), moment in zip(portion, moments, strict=True)
        ]
    for (_, output, mask), columns in zip(jobs, solved, strict=True):
        write(output, mask, columns)
    network.train(training)


def _portions(jobs: list[tuple[Group, nn.Module, Tensor]]) -> Iterator[list[tuple[Group, nn.Module, Tensor]]]:
    portion: list[tuple[Group, nn.Module, Tensor]] = []
    size = 0
    for job in jobs:
        needed = 4 * (columns_of(job[1]) + 1) ** 2
        if portion and size + needed > MOMENTS_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion, size = [*portion, job], size + needed
    if portion:
        yield portion


class Moments:
    """Sums of x xᵀ over the tokens that enter a projection, a constant one appended to x: float32."""

    def __init__(self, projection: nn.Module, stack: str) -> None:
        self.projection, self.stack = projection, stack
        size = columns_of(projection) + 1
        self.total = torch.zeros(size, size, device=matrix_of(projection).device)
        self.batch: Batch = {}

    def see(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the projection."""
        inputs = with_one(args[0].detach()[tokens(self.batch, self.stack, args[0])])
        self.total.addmm_(inputs.T, inputs)


@contextmanager
def watching(moments: Sequence[Moments]) -> Iterator[None]:
    """Hooks them in for the length of the block."""
    handles = [moment.projection.register_forward_pre_hook(moment.see) for moment in moments]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_one(inputs: Tensor) -> Tensor:
    """(tokens, features) to float32 of (tokens, features + 1)."""
    return nn.functional.pad(inputs.float(), (0, 1), value=1.0)


def tokens(batch: Batch, stack: str, states: Tensor) -> Tensor:
    """Which positions of `states` (batch, tokens, features) are no padding: booleans of (batch, tokens)."""
    mask = batch.get("attention_mask")
    if stack == "decoder" and "decoder_input_ids" in batch:
        labels = batch.get("labels")
        mask = None if labels is None else labels != IGNORED
    if mask is None or mask.shape != states.shape[:-1]:
        return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)
    return mask.to(states.device, torch.bool)


def solution(projection: nn.Module, moment: Tensor, keep: Tensor, damping: float = DAMPING) -> Tensor:
    """New columns for the units in `keep`, given the `moment` of (inputs + 1, inputs + 1) of the projection's inputs.

    (outputs, kept inputs), and where there is a bias, one column more: the mean of what goes is folded into it.
    """
    weight, bias = matrix_of(projection), getattr(projection, "bias", None)
    index, full, second = _columns(weight, keep), weight.double(), moment.double()
    held = torch.full((len(index),), damping, dtype=torch.float64, device=weight.device)
    held *= second.diagonal()[:-1].mean().clamp_min(1e-12)
    if bias is None:
        second = second[:-1, :-1]
    else:
        full = torch.cat([full, bias.double()[:, None]], dim=1)
        index = torch.cat([index, index.new_tensor([weight.shape[1]])])
        held = nn.functional.pad(held, (0, 1), value=1e-9 * float(second[-1, -1]))
    wanted = second[index] @ full.T + held[:, None] * full.T[index]
    found: Tensor = torch.linalg.solve(second[index][:, index] + held.diag(), wanted)
    return found.T.to(weight.dtype)


def write(projection: nn.Module, keep: Tensor, columns: Tensor) -> None:
    """Puts a `solution` into its place."""
    weight, bias = matrix_of(projection).detach(), getattr(projection, "bias", None)
    index = _columns(weight, keep)
    weight[:, index] = columns[:, : len(index)]
    if bias is not None:
        bias.detach().copy_(columns[:, -1])


def _columns(weight: Tensor, keep: Tensor) -> Tensor:
    return runs(keep, weight.shape[1] // len(keep)).to(weight.device)
