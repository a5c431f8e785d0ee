"""What language models share: perplexity, the exponential of the mean loss per predicted token."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed
from workers.engine.tasks.row_task import IGNORED, Row, RowTask, labels_in
from workers.engine.tasks.task import Batch

TOKENS_TOGETHER = 1024
"""About how many tokens are run at once: each has a score for every entry of the vocabulary, and a gradient of it."""
LOSS_CHUNK = 256
LARGEST_LOSS = 700.0
"""A broken network's perplexity must still be a finite number."""


class LanguageModel(RowTask):
    """Rows `{"text"}`."""

    form = "text"

    @classmethod
    def fits(cls, row: Row) -> bool:
        """Any text."""
        return isinstance(row["text"], str)

    @property
    def _together(self) -> int:
        return max(1, TOKENS_TOGETHER // self.settings.max_length)

    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """As of every task, in smaller batches where blocks are long."""
        return super().sample(rows, min(batch_size, self._together))

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`perplexity`; its interval is over blocks."""
        rows = []
        for batch, logits in self.passes(network, split, self._together):
            labels = labels_in(batch).to(logits.device)
            losses = torch.cat(
                [
                    functional.cross_entropy(scores, wanted, reduction="none")
                    for scores, wanted in zip(logits.split(LOSS_CHUNK), labels.split(LOSS_CHUNK), strict=True)
                ]
            )
            counts = (batch["labels"] != IGNORED).sum(1)
            for row in losses.double().cpu().split(counts.tolist()):
                rows.append((float(row.sum()), len(row)))
        statistics = np.array(rows, dtype=np.float64)
        loss = float(statistics[:, 0].sum() / statistics[:, 1].sum())
        return Summed(loss, QUALITY_METRICS[self.name], statistics, perplexity)


def perplexity(sums: NDArray[np.float64]) -> tuple[float]:
    """From the summed loss and the number of tokens (Jelinek et al., 1977)."""
    loss, tokens = sums
    return (math.exp(min(loss / tokens, LARGEST_LOSS)),)
