"""Text classification: one label for a text or a pair of texts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from workers.engine.failures import EngineError

Encoded = tuple[dict[str, list[int]], int]
_BUCKET = 32
"""Batches that are sorted by length together: little padding, and yet a random order."""


def labels_in(folder: Path) -> list[str]:
    """The labels of a data set, in the order of a new head: names sorted, or `LABEL_0` to the highest integer."""
    found: set[int | str] = set()
    for file in folder.glob("*.jsonl"):
        found |= {row["label"] for row in _read(file)}
    names = sorted(label for label in found if isinstance(label, str))
    highest = max((label for label in found if isinstance(label, int)), default=-1)
    return names or [f"LABEL_{index}" for index in range(highest + 1)]


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class TextClassification:
    """Rows `{"text", "text_pair"?, "label"}` of up to four splits, tokenized once."""

    def __init__(self, folder: Path, model: Path, labels: Sequence[str], max_length: int, seed: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self._labels = {label: index for index, label in enumerate(labels)}
        self._max_length, self._seed = max_length, seed
        self.warnings: list[tuple[str, str]] = []
        self._truncated = 0
        self._splits = {file.stem: self._encode(_read(file)) for file in sorted(folder.glob("*.jsonl"))}
        self._fill_missing_splits()
        if self._truncated:
            message = f"{self._truncated} inputs are longer than max_length ({max_length} tokens) and were cut."
            self.warnings.append(("INPUT_TRUNCATED", message))

    def _encode(self, rows: list[dict[str, Any]]) -> list[Encoded]:
        pairs = [row.get("text_pair") for row in rows]
        texts = [row["text"] for row in rows]
        encoded = self._tokenizer(
            texts, pairs if any(pair is not None for pair in pairs) else None, add_special_tokens=True, verbose=False
        )
        limited = self._tokenizer(
            texts,
            pairs if any(pair is not None for pair in pairs) else None,
            truncation=True,
            max_length=self._max_length,
        )
        names = list(limited.keys())
        self._truncated += sum(len(ids) > self._max_length for ids in encoded["input_ids"])
        return [
            ({name: limited[name][index] for name in names}, self._index(row["label"]))
            for index, row in enumerate(rows)
        ]

    def _index(self, label: int | str) -> int:
        index = label if isinstance(label, int) else self._labels.get(label, -1)
        if not 0 <= index < len(self._labels):
            raise EngineError("LABEL_UNKNOWN", "a row has a label that the model's head does not know", blame="user")
        return index

    def _fill_missing_splits(self) -> None:
        if "train" in self._splits and "validation" not in self._splits:
            rows = self._splits["train"]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed)).tolist()
            held_out = max(1, len(rows) // 10)
            self._splits["validation"] = [rows[index] for index in order[:held_out]]
            self._splits["train"] = [rows[index] for index in sorted(order[held_out:])]
        if "test" not in self._splits and "validation" in self._splits:
            self._splits["test"] = self._splits["validation"]
            self.warnings.append(("TEST_SPLIT_MISSING", "No test split: the figures are on the validation split."))

    def rows(self, split: str) -> int:
        """How many rows a split has; none where it is missing."""
        return len(self._splits.get(split, ()))

    def batches(
        self, split: str, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """All rows once, in batches of like length, int64 of (batch, tokens); shuffled where a generator is given."""
        rows = self._splits[split]
        if generator is None:
            order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]["input_ids"]))
            chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        else:
            chunks = _bucketed([len(row[0]["input_ids"]) for row in rows], batch_size, generator)
        for chunk in chunks:
            yield self._collate([rows[index] for index in chunk])

    def sample(self, rows: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Rows of `calibration`, or else of `train`, chosen by the seed."""
        source = self._splits.get("calibration") or self._splits["train"]
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(self._seed)).tolist()[:rows]
        order.sort(key=lambda index: len(source[index][0]["input_ids"]))
        for start in range(0, len(order), batch_size):
            yield self._collate([source[index] for index in order[start : start + batch_size]])

    def _collate(self, rows: list[Encoded]) -> dict[str, Tensor]:
        padded = self._tokenizer.pad([encoded for encoded, _ in rows], return_tensors="pt")
        return {**padded, "labels": torch.tensor([label for _, label in rows])}

    def loss(self, network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(logits_of(network, batch).float(), batch["labels"].to(network.device))

    def evaluate(self, network: PreTrainedModel, split: str) -> dict[str, Any]:
        """`{"predictions", "references", "loss"}`: class indices of every row, and the mean loss."""
        network.eval()
        predictions, references, total = [], [], 0.0
        with torch.inference_mode():
            for batch in self.batches(split, 64):
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


def _bucketed(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch_size * _BUCKET):
        bucket = sorted(order[start : start + batch_size * _BUCKET], key=lambda index: lengths[index])
        batches += [bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
