"""Token classification: every word of a text that comes as words has a tag."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.labels import Labels, fresh_labels
from workers.engine.tasks.row_task import IGNORED, Mean, Numbers, Row, RowTask, chunks, labels_in
from workers.engine.tasks.task import Settings

CHUNK_TAG = re.compile(r"O|[BIES](-.*)?")
"""Tags that mark where entities begin and end; any other tag set says something of single words, such as their part of
speech."""


class TokenClassification(RowTask):
    """Rows `{"tokens", "tags"}`; the first sub-token of a word bears its tag, a word that was cut off has none."""

    name = "token-classification"
    form = "tokens, a list of strings, and tags, a list as long of names or integers"
    auto = "AutoModelForTokenClassification"
    needs_offsets = True

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        self._labels = Labels(network)
        super().__init__(folder, tokenizer, network, settings)

    @classmethod
    def labels_of_new_head(cls, folder: Path, known: Sequence[str]) -> list[str] | None:
        """All tags of all splits, see `fresh_labels`."""
        rows = (row for file in folder.glob("*.jsonl") for row in cls.read(file))
        return fresh_labels({tag for row in rows for tag in row["tags"]}, known)

    @classmethod
    def fits(cls, row: Row) -> bool:
        """As many tags as tokens, at least one."""
        tokens, tags = row["tokens"], row["tags"]
        lists = isinstance(tokens, list) and isinstance(tags, list) and len(tokens) == len(tags) > 0
        return lists and all(isinstance(x, str) for x in tokens) and all(isinstance(x, int | str) for x in tags)

    def columns(self) -> dict[str, Column]:
        """Tokens and the tags' labels."""
        return {"input_ids": Column(self.padding, mask="attention_mask"), "labels": Column(IGNORED)}

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """One for one."""
        for chunk in chunks(rows):
            texts = [" ".join(row["tokens"]) for row in chunk]
            found = self.tokenize(texts, return_offsets_mapping=True, return_token_type_ids=False)
            for row, ids, spans in zip(chunk, found["input_ids"], found["offset_mapping"], strict=True):
                labels = np.array([self._labels.index(tag) for tag in row["tags"]])
                yield {"input_ids": ids, "labels": on_first_tokens(labels, row["tokens"], np.array(spans)).tolist()}

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`f1`, micro-averaged over entities, and `accuracy` of tags.

        Where tags mark no entities, each word counts as one, and `f1` is the same as `accuracy`.
        """
        loss, rows = Mean(), []
        for batch, logits in self.passes(network, split):
            references, predictions = labels_in(batch), logits.argmax(-1).cpu()
            loss.add(self.loss_of(logits, batch), len(logits))
            words = (batch["labels"] != IGNORED).sum(1).tolist()
            for wanted, found in zip(references.split(words), predictions.split(words), strict=True):
                rows.append(self._counts(wanted.tolist(), found.tolist()))
        return Summed(loss.value, QUALITY_METRICS[self.name], np.array(rows, dtype=np.float64), f1_and_accuracy)

    def _counts(self, wanted: list[int], found: list[int]) -> tuple[int, ...]:
        """Entities hit, entities in both together, tags hit, tags."""
        from seqeval.metrics.sequence_labeling import get_entities  # half a second of the start of every job

        hits = sum(a == b for a, b in zip(wanted, found, strict=True))
        if not all(CHUNK_TAG.fullmatch(name) for name in self._labels.names):
            return hits, 2 * len(wanted), hits, len(wanted)
        ours, theirs = (set(get_entities([self._labels.names[index] for index in row])) for row in (found, wanted))
        return len(ours & theirs), len(ours) + len(theirs), hits, len(wanted)


def on_first_tokens(labels: NDArray[np.int64], words: Iterable[str], spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of (words,) as labels of (tokens,), given where tokens begin and end in the words joined by spaces."""
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    # A token may begin at the space before its word, so that its end is what tells the word.
    word = np.minimum(np.searchsorted(ends, spans[:, 1]), len(ends) - 1)
    inside = (spans[:, 1] > spans[:, 0]) & (spans[:, 1] > (ends - lengths)[word])
    first = np.flatnonzero(inside)[np.unique(word[inside], return_index=True)[1]]
    placed = np.full(len(spans), IGNORED)
    placed[first] = labels[word[first]]
    return placed


def f1_and_accuracy(sums: NDArray[np.float64]) -> tuple[float, float]:
    """From the sums of `_counts`; 0 where there is nothing to count."""
    hits, entities, tags_hit, tags = sums
    return float(2 * hits / max(1.0, entities)), float(tags_hit / max(1.0, tags))
