"""Text classification: one label for a text or a pair of texts."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from workers.engine.failures import EngineError
from workers.engine.families import labels_of
from workers.engine.tasks.encoded import Encoded, bucketed, by_length

TOKENIZED_TOGETHER = 1000
EVALUATION_BATCH = 64


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; raises EngineError DATA_UNUSABLE naming split and line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                usable = isinstance(row["text"], str) and isinstance(row["label"], int | str)
            except (ValueError, KeyError, TypeError):
                usable = False
            if not usable:
                message = f"line {number} of {file.stem} is no row of text-classification: it needs text and label"
                raise EngineError("DATA_UNUSABLE", message, blame="user")
            yield row


def labels_of_new_head(folder: Path, known: Sequence[str]) -> list[str] | None:
    """Labels for a fresh head: names sorted, or `LABEL_0` to the highest integer; None where `known` ones fit.

    Integers index the known labels. Raises EngineError DATA_UNUSABLE where there is nothing to tell apart.
    """
    found = {row["label"] for file in folder.glob("*.jsonl") for row in read_rows(file)}
    names = sorted(label for label in found if isinstance(label, str))
    integers = [label for label in found if isinstance(label, int)]
    if len(found) < 2 or (names and integers):
        raise EngineError("DATA_UNUSABLE", "labels must be all names or all integers, and at least two", blame="user")
    if known and (set(names) <= set(known) if names else max(integers) < len(known)):
        return None
    return names or [f"LABEL_{index}" for index in range(max(integers) + 1)]


class TextClassification:
    """Rows `{"text", "text_pair"?, "label"}` of up to four splits, tokenized once."""

    def __init__(self, folder: Path, model: Path, network: PreTrainedModel, max_length: int, seed: int) -> None:
        self._tokenizer = _load_tokenizer(model)
        config = network.config
        self._labels = {label: index for index, label in enumerate(labels_of(network))}
        self._vocabulary = int(config.vocab_size)
        self._has_types = getattr(config, "type_vocab_size", 1) > 1
        self._padding = int(config.pad_token_id or 0)
        self._max_length, self._seed = max_length, seed
        self._truncated = 0
        self.warnings: list[tuple[str, str]] = []
        self._splits = {file.stem: self._encode(file) for file in sorted(folder.glob("*.jsonl"))}
        self._fill_missing_splits()
        if self._truncated:
            message = f"{self._truncated} inputs are longer than max_length ({max_length} tokens) and were cut."
            self.warnings.append(("INPUT_TRUNCATED", message))

    def _encode(self, file: Path) -> Encoded:
        encoded = Encoded(self._padding, typed=self._has_types)
        rows = enumerate(read_rows(file))
        # A tokenizer takes texts with partners or texts without, never both at once.
        for _, run in groupby(rows, key=lambda row: (row[0] // TOKENIZED_TOGETHER, row[1].get("text_pair") is None)):
            self._tokenize([row for _, row in run], encoded)
        encoded.close()
        if encoded.highest >= self._vocabulary:
            message = "the tokenizer gives token ids that the model has no embedding for; upload the model's own"
            raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
        return encoded

    def _tokenize(self, rows: list[dict[str, Any]], encoded: Encoded) -> None:
        texts = [[row[key] for row in rows] for key in ("text", "text_pair") if rows[0].get(key) is not None]
        options = {"truncation": True, "max_length": self._max_length, "return_token_type_ids": self._has_types}
        cut = self._tokenizer(*texts, **options)
        longest = [len(ids) == self._max_length for ids in cut["input_ids"]]
        if any(longest):  # whether they were cut or fit exactly shows only without the limit
            suspects = [[text for text, long in zip(part, longest, strict=True) if long] for part in texts]
            full = self._tokenizer(*suspects, verbose=False)
            self._truncated += sum(len(ids) > self._max_length for ids in full["input_ids"])
        types = cut["token_type_ids"] if self._has_types else [()] * len(rows)
        for ids, kinds, row in zip(cut["input_ids"], types, rows, strict=True):
            encoded.append(ids, kinds, self._index(row["label"]))

    def _index(self, label: int | str) -> int:
        index = label if isinstance(label, int) else self._labels.get(label, -1)
        if not 0 <= index < len(self._labels):
            raise EngineError("LABEL_UNKNOWN", "a row has a label that the model's head does not know", blame="user")
        return index

    def _fill_missing_splits(self) -> None:
        train = self._splits.get("train")
        if train is not None and "validation" not in self._splits:
            if len(train) < 2:
                raise EngineError("DATA_UNUSABLE", "train needs at least two rows, or a validation split", blame="user")
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self._seed)).tolist()
            held_out = max(1, len(train) // 10)
            self._splits["validation"] = train.select(order[:held_out])
            self._splits["train"] = train.select(sorted(order[held_out:]))
        if "test" not in self._splits and "validation" in self._splits:
            self._splits["test"] = self._splits["validation"]
            self.warnings.append(("TEST_SPLIT_MISSING", "No test split: the figures are on the validation split."))

    def rows(self, split: str) -> int:
        """How many rows a split has; none where it is missing."""
        return len(self._splits.get(split, ()))

    def _split(self, name: str) -> Encoded:
        if not self.rows(name):
            raise EngineError("DATA_UNUSABLE", f"the job needs rows in the split {name}; there are none", blame="user")
        return self._splits[name]

    def batches(
        self, split: str, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """All rows once, in batches of like length, int64 of (batch, tokens); shuffled where a generator is given."""
        rows = self._split(split)
        if generator is None:
            chunks = by_length(range(len(rows)), rows.lengths, batch_size)
        else:
            chunks = bucketed(rows.lengths, batch_size, generator)
        for chunk in chunks:
            yield rows.batch(chunk)

    def sample_size(self, rows: int) -> int:
        """How many rows `sample` gives when asked for `rows`."""
        return min(rows, self.rows("train") or self.rows("calibration"))

    def sample(self, rows: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Rows of `train`, or where it is missing of `calibration`, chosen by the seed."""
        source = self._split("train" if self.rows("train") else "calibration")
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(self._seed)).tolist()[:rows]
        for chunk in by_length(order, source.lengths, batch_size):
            yield source.batch(chunk)

    def loss(self, network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(logits_of(network, batch).float(), batch["labels"].to(network.device))

    def evaluate(self, network: PreTrainedModel, split: str) -> dict[str, Any]:
        """`{"predictions", "references", "loss"}`: class indices of every row, and the mean loss."""
        network.eval()
        predictions, references, total = [], [], 0.0
        with torch.inference_mode():
            for batch in self.batches(split, EVALUATION_BATCH):
                logits = logits_of(network, batch).float().cpu()
                total += functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
                predictions += logits.argmax(-1).tolist()
                references += batch["labels"].tolist()
        return {"predictions": predictions, "references": references, "loss": total / max(1, len(references))}


def logits_of(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Scores of (batch, labels)."""
    inputs = {name: value.to(network.device) for name, value in batch.items() if name != "labels"}
    logits: Tensor = network(**inputs).logits
    return logits


def _load_tokenizer(model: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # whatever the library raises, the files are what cannot be used
        message = "the model's tokenizer files are missing or cannot be read; upload them with the model"
        raise EngineError("TOKENIZER_UNUSABLE", message, blame="user") from error
