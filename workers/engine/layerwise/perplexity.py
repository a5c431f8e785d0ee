"""Perplexity of a network that stays in its files: one block in memory, and of the head some rows at a time."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from workers.engine.evaluation import Summed
from workers.engine.layerwise.block_run import BlockRun
from workers.engine.layerwise.files import FiledNetwork, Table
from workers.engine.tasks.language_model import perplexity
from workers.engine.tasks.row_task import IGNORED
from workers.engine.tasks.task import INPUTS, Batch

HELD = 1 << 28
"""Bytes of hidden states that are held at once; the files are read again for every so many."""
SCORED = 1024
"""Tokens that are scored at once."""


@torch.no_grad()
def evaluate_on_disk(
    files: FiledNetwork, batches: Iterable[Batch], progress: Callable[[int], None] = lambda _rows: None
) -> Summed:
    """What `LanguageModel.evaluate` gives for these batches of inputs and `labels`; `progress` gets rows that are done.

    Every row counts by the sum of its losses and its number of tokens.
    """
    statistics: list[tuple[float, int]] = []
    for group in _groups(batches, HELD // (4 * files.head.width)):
        statistics += _rows(files, group)
        progress(sum(len(batch["labels"]) for batch in group))
    table = np.array(statistics, dtype=np.float64)
    loss = float(table[:, 0].sum() / table[:, 1].sum())
    return Summed(loss, ("perplexity",), table, perplexity)


def _groups(batches: Iterable[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Runs of batches of about so many tokens."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if sum(each["labels"].numel() for each in group) >= tokens:
            yield group
            group = []
    if group:
        yield group


def _rows(files: FiledNetwork, batches: list[Batch]) -> list[tuple[float, int]]:
    """Sum of losses and number of tokens of every row."""
    inputs = [{name: value for name, value in batch.items() if name in INPUTS} for batch in batches]
    stream = files.stream(inputs)
    for number in range(len(files)):
        with files.open(number) as (block, _):
            BlockRun(block, stream, number).advance()
    kept = [batch["labels"] != IGNORED for batch in batches]
    for index, (given, mask) in enumerate(zip(inputs, kept, strict=True)):
        stream.states[index] = files.after_blocks(stream.states[index], given)[mask.to(files.device)]
    labels = torch.cat([batch["labels"][mask] for batch, mask in zip(batches, kept, strict=True)])
    losses = head_losses(torch.cat(stream.states), labels.to(files.device), files.head).double().cpu()
    counts = [int(count) for mask in kept for count in mask.sum(1)]
    return [(float(row.sum()), len(row)) for row in losses.split(counts)]


def head_losses(states: Tensor, labels: Tensor, head: Table) -> Tensor:
    """Cross-entropy of every token, (tokens,), given states of (tokens, width); no token has all its scores at once."""
    total = torch.full_like(states[:, 0], -torch.inf)
    own = torch.zeros_like(total)
    for begin, rows in head.parts():
        table = rows.to(states.device)
        for tokens in torch.arange(len(states), device=states.device).split(SCORED):
            scores = states[tokens] @ table.T
            total[tokens] = torch.logaddexp(total[tokens], scores.logsumexp(1))
            place = labels[tokens] - begin
            inside = ((place >= 0) & (place < len(table))).nonzero().flatten()
            own[tokens[inside]] = scores[inside, place[inside]]
    return total - own
