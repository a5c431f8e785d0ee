"""Micro-batches: a batch's gradients from parts of it, one after another, where the whole takes too much memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.snapshot import chance_of, put_back_chance
from workers.engine.tasks import Batch
from workers.engine.tasks.row_task import IGNORED


def accumulate(batch: Batch, parts: int, loss: Callable[[Batch], Tensor]) -> float:
    """Adds up the gradients of `loss`, a mean over what has a label, over `parts` of a batch; returns the mean.

    Every part weighs as much as it has labels, so that the sum is the gradient of the whole.
    """
    divided = [(part, labels_in(part)) for part in divide(batch, parts)]
    whole, total = sum(count for _, count in divided), 0.0
    for part, count in divided:
        if count:
            share = loss(part) * (count / whole)
            share.backward()
            total += float(share.detach())
    return total


def accumulate_jointly(
    inputs: Batch, parts: int, outputs: Callable[[Batch], Tensor], loss: Callable[[Tensor], Tensor]
) -> float:
    """The same where rows are judged together: `loss` is of the `outputs` of all `inputs` (Gao et al., 2021).

    Outputs are computed twice, under the same dropout: first to know their gradients, then to hand these on.
    """
    pieces, device = divide(inputs, parts), inputs["input_ids"].device
    found, chances = [], []
    for piece in pieces:
        chances.append(chance_of(device))
        with torch.no_grad():
            found.append(outputs(piece))
    whole, end = torch.cat(found).requires_grad_(), chance_of(device)
    value = loss(whole)
    value.backward()
    assert whole.grad is not None
    for piece, chance, gradient in zip(pieces, chances, whole.grad.split([len(part) for part in found]), strict=True):
        put_back_chance(device, chance)
        outputs(piece).backward(gradient)
    put_back_chance(device, end)
    return float(value.detach())


def divide(batch: Batch, parts: int) -> list[Batch]:
    """Up to `parts` runs of rows, of sizes as like as can be."""
    count = min(parts, len(batch["input_ids"]))
    pieces = {name: value.tensor_split(count) for name, value in batch.items()}
    return [{name: piece[number] for name, piece in pieces.items()} for number in range(count)]


def labels_in(batch: Batch) -> int:
    """How many items the mean loss of a batch is over, or a number that grows with them: rows where none are named."""
    labels = batch.get("labels")
    return len(batch["input_ids"]) if labels is None else int((labels != IGNORED).sum())
