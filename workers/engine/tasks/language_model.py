"""What language models share: perplexity, the exponential of the mean loss per predicted token."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed
from workers.engine.tasks.row_task import IGNORED, Row, RowTask, labels_in

EVALUATED_TOKENS = 1024
"""About how many tokens are evaluated at once: each has a score for every entry of the vocabulary."""
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

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`perplexity`; its interval is over blocks."""
        rows = []
        for batch, logits in self.passes(network, split, max(1, EVALUATED_TOKENS // self.settings.max_length)):
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
