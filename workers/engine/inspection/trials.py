"""Trials: the lowest scored share of the units is cut from a copy of the network, and the loss measured without it."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Cut
from service.specs.findings import Trial
from workers.engine.failures import EngineError
from workers.engine.replica import replica
from workers.engine.rounding import brief
from workers.engine.structures.structure import Structure
from workers.engine.surgery import allocate
from workers.engine.tasks import Batch, Task
from workers.engine.tasks.sentence_embedding import SentenceEmbedding

BATCH = 8
"""Rows at a time; a language model has a score for every entry of its vocabulary at every token."""


class Gauge:
    """Measures networks on the same rows: validation's, so that those of test stay unseen; else what there is."""

    def __init__(self, network: PreTrainedModel, task: Task, rows: int, seed: int) -> None:
        self._task = task
        self.split, batches = _rows_of(task, rows, seed)
        self.batches = list(_first(batches, task, rows))
        self.rows = sum(task.size(batch) for batch in self.batches)
        self._network = network
        loss, self._predicted = self._pass(network)
        self.loss = _finite(loss)

    def measure(self, network: PreTrainedModel) -> tuple[float | None, float | None]:
        """Mean loss, None where it is not finite, and the share of predictions that are those of the whole network."""
        loss, predicted = self._pass(network)
        if isinstance(self._task, SentenceEmbedding):
            return _finite(loss), None
        same = sum(int((ours == theirs).sum()) for ours, theirs in zip(predicted, self._predicted, strict=True))
        return _finite(loss), brief(same / max(1, sum(len(found) for found in predicted)))

    @torch.no_grad()
    def _pass(self, network: PreTrainedModel) -> tuple[float, list[Tensor]]:
        total, predicted = 0.0, []
        network.train(False)
        # Without a label the whole network is what an embedding is compared with. Not so while units are scored: a
        # second pass would open the gates again.
        self._task.teacher = self._network
        for batch in self.batches:
            logits = self._task.logits(network, batch)
            total += float(self._task.loss_of(logits, batch)) * self._task.size(batch)
            predicted.append(logits.argmax(-1).cpu())
        self._task.teacher = None
        return total / max(1, self.rows), predicted


def _finite(loss: float) -> float | None:
    """The loss in few figures, without the rounding errors that a loss of zero is made of."""
    return brief(round(loss, 7)) if math.isfinite(loss) else None


def _rows_of(task: Task, rows: int, seed: int) -> tuple[str, Iterator[Batch]]:
    for split in ("validation", "test"):
        if task.rows(split):
            return split, task.batches(split, BATCH, torch.Generator().manual_seed(seed))
    return "train" if task.rows("train") else "calibration", task.sample(rows, BATCH)


def _first(batches: Iterator[Batch], task: Task, rows: int) -> Iterator[Batch]:
    """Batches until there are so many rows."""
    seen = 0
    for batch in batches:
        yield batch
        seen += task.size(batch)
        if seen >= rows:
            return


def trials(
    network: PreTrainedModel,
    structure: Structure,
    cut: Cut,
    scores: list[Tensor],
    ratios: Sequence[float],
    gauge: Gauge | None,
    *,
    comparable: bool,
    advance: Callable[[int], None],
) -> Iterator[Trial]:
    """Cuts each share alone, in rising order; without a gauge only counts what would go."""
    groups = structure.groups(network)
    original = [group.units for group in groups]
    before: list[Tensor] = []
    loss = agreement = None
    for ratio in sorted(ratios):
        keep = allocate(cut, ratio, groups, scores, original, comparable=comparable)
        if gauge is not None and not _same(keep, before):
            left = _without(network, structure, keep)
            loss, agreement = (None, None) if left is None else gauge.measure(left)
        before = keep
        advance(0 if gauge is None else gauge.rows)
        yield Trial(
            ratio=ratio,
            removed=sum(int((~kept).sum()) for kept in keep),
            of=sum(original),
            score=brief(score_share(scores, keep, comparable=comparable)),
            loss=loss,
            agreement=agreement,
        )


def _same(keep: list[Tensor], before: list[Tensor]) -> bool:
    return bool(before) and all(torch.equal(ours, theirs) for ours, theirs in zip(keep, before, strict=True))


def _without(network: PreTrainedModel, structure: Structure, keep: list[Tensor]) -> PreTrainedModel | None:
    """A copy without some units; the network itself where all stay, None where what is left would be no network."""
    if all(bool(kept.all()) for kept in keep):
        return network
    copy = replica(network, network.device)
    try:
        structure.cut(copy, keep)
    except EngineError:
        return None
    return copy


def score_share(scores: list[Tensor], keep: list[Tensor], *, comparable: bool) -> float:
    """Share of the whole score that goes; the mean over groups where their scores are in no common unit."""
    pairs = [(float(s.double().sum()), float(s[~k].double().sum())) for s, k in zip(scores, keep, strict=True)]
    if comparable:
        pairs = [(sum(whole for whole, _ in pairs), sum(gone for _, gone in pairs))]
    return sum(gone / whole if whole > 0 else 0.0 for whole, gone in pairs) / len(pairs)
