"""Text classification: a text or a pair of texts has one label, or any number of them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed, macro_f1
from workers.engine.failures import EngineError
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.labels import Labels, fresh_labels
from workers.engine.tasks.row_task import Mean, Numbers, Row, RowTask, chunks
from workers.engine.tasks.task import Batch, Settings, forward

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class TextClassification(RowTask):
    """Rows `{"text", "text_pair"?, "label"}` or, all of them, `{"text", "text_pair"?, "labels"}`."""

    name = "text-classification"
    form = "text and label, or in every row text and labels"
    auto = "AutoModelForSequenceClassification"

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        self._labels = Labels(network)
        self._multi = self.problem_type(folder) == MULTI
        super().__init__(folder, tokenizer, network, settings)

    @classmethod
    def labels_of_new_head(cls, folder: Path, known: Sequence[str]) -> list[str] | None:
        """All labels of all splits, see `fresh_labels`."""
        rows = (row for file in folder.glob("*.jsonl") for row in cls.read(file))
        return fresh_labels({label for row in rows for label in _labels_in(row)}, known)

    @classmethod
    def problem_type(cls, folder: Path) -> str:
        """Whether rows have one label or several, as the first one has it."""
        first = next((row for file in sorted(folder.glob("*.jsonl")) for row in cls.read(file)), {})
        return MULTI if "labels" in first else SINGLE

    @classmethod
    def fits(cls, row: Row) -> bool:
        """Texts are strings, labels names or integers."""
        texts = isinstance(row["text"], str) and isinstance(row.get("text_pair"), str | None)
        known = all(isinstance(label, int | str) for label in _labels_in(row))
        return texts and known and ("label" in row) != ("labels" in row)

    def columns(self) -> dict[str, Column]:
        """Tokens, their types where the network takes them, and labels."""
        types = {"token_type_ids": Column(0, "b")} if self.typed else {}
        labels = {"labels": Column(-1 if self._multi else None)}
        return {"input_ids": Column(self.padding, mask="attention_mask")} | types | labels

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """One for one."""
        for chunk in chunks(rows):
            # A tokenizer takes texts with partners or texts without, never both at once.
            for _, run in groupby(chunk, key=lambda row: row.get("text_pair") is None):
                yield from self._encode(list(run))

    def _encode(self, rows: list[Row]) -> Iterator[Numbers]:
        texts = [[row[key] for row in rows] for key in ("text", "text_pair") if rows[0].get(key) is not None]
        found = self.tokenize(*texts, return_token_type_ids=self.typed)
        for index, row in enumerate(rows):
            types = {"token_type_ids": found["token_type_ids"][index]} if self.typed else {}
            yield {"input_ids": found["input_ids"][index], "labels": self._indices(row)} | types

    def _indices(self, row: Row) -> list[int]:
        if ("labels" in row) is not self._multi:
            message = "rows have either label or labels, in every split; never some the one and some the other"
            raise EngineError("DATA_UNUSABLE", message, blame="user")
        return [self._labels.index(label) for label in _labels_in(row)]

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Sets of labels become ones in float32 of (rows, labels)."""
        if not self._multi:
            return batch
        ones = torch.zeros(len(batch["labels"]), len(self._labels) + 1)
        # The filling, -1, means the last column, which nobody sees.
        return batch | {"labels": ones.scatter(1, batch["labels"] % ones.shape[1], 1.0)[:, :-1]}

    def logits(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Scores of (rows, labels)."""
        return forward(network, batch).logits.float() if self._multi else super().logits(network, batch)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy; of sets of labels binary, over rows and labels."""
        if not self._multi:
            return super().loss_of(logits, batch)
        return functional.binary_cross_entropy_with_logits(logits, batch["labels"].to(logits.device))

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """As for every task; of sets of labels `T² * KL` between Bernoulli variables, mean over rows and labels."""
        if not self._multi:
            return super().divergence(student, teacher, temperature)
        yes, no = (
            functional.kl_div(
                functional.logsigmoid(sign * student / temperature),
                functional.logsigmoid(sign * teacher / temperature),
                reduction="none",
                log_target=True,
            )
            for sign in (1, -1)
        )
        return temperature**2 * (yes + no).mean()

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`accuracy` and `macro_f1`; of sets of labels at threshold 0.5, where only the very same set is accurate."""
        loss, predictions, references = Mean(), [], []
        for batch, logits in self.passes(network, split):
            loss.add(self.loss_of(logits, batch), len(logits))
            predictions.append((logits > 0 if self._multi else logits.argmax(-1)).cpu().numpy())
            references.append(batch["labels"].numpy())
        measure = label_sets if self._multi else Classified
        return measure(loss.value, np.concatenate(references), np.concatenate(predictions))


def _labels_in(row: Row) -> list[int | str]:
    labels = row["labels"] if "labels" in row else [row["label"]]
    if not isinstance(labels, list):
        raise TypeError("labels must be a list")
    return labels


class Classified(Evaluation):
    """One class of each row, as it is and as predicted."""

    def __init__(self, loss: float, references: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
        self.loss, self.rows = loss, len(references)
        self._references, self._predictions = references, predictions
        self._classes = int(max(references.max(), predictions.max())) + 1

    def metrics(self) -> dict[str, float]:
        """`accuracy` and `macro_f1`, both in [0, 1]."""
        return dict(zip(QUALITY_METRICS["text-classification"], self.resampled(np.arange(self.rows)), strict=True))

    def resampled(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """From counts: a thousand resamples through scikit-learn would take a minute."""
        references, predictions = self._references[rows], self._predictions[rows]
        hits, support, predicted = (
            np.bincount(classes, minlength=self._classes)
            for classes in (references[references == predictions], references, predictions)
        )
        return float(hits.sum() / len(rows)), macro_f1(hits, support, predicted)


def label_sets(loss: float, references: NDArray[Any], predictions: NDArray[np.bool_]) -> Summed:
    """Figures of sets of labels, ones and zeros of (rows, labels)."""
    wanted = references > 0
    exact = (wanted == predictions).all(1, keepdims=True)
    statistics = np.hstack([np.ones_like(exact), exact, wanted & predictions, wanted, predictions])

    def compute(sums: NDArray[np.float64]) -> tuple[float, float]:
        return float(sums[1] / sums[0]), macro_f1(*sums[2:].reshape(3, -1))

    return Summed(loss, QUALITY_METRICS["text-classification"], statistics.astype(np.float64), compute)
