"""Tokenized rows, end to end in flat arrays: a million rows as Python lists would take gigabytes."""

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BATCHES_IN_A_BUCKET = 32


class Encoded:
    """Rows of token ids, token types where `typed`, and labels; `padding` is the id that fills a batch up."""

    def __init__(self, padding: int, *, typed: bool) -> None:
        self._padding, self._typed = padding, typed
        self._ids, self._types = array("i"), array("b")
        self._starts, self._labels = array("q", [0]), array("q")
        self.lengths: list[int] = []

    def append(self, ids: Sequence[int], types: Sequence[int], label: int) -> None:
        """Adds a row; `types` is empty where the rows are not typed."""
        self._ids.extend(ids)
        self._types.extend(types)
        self._starts.append(len(self._ids))
        self._labels.append(label)
        self.lengths.append(len(ids))

    def close(self) -> None:
        """No row follows."""
        self.highest = max(self._ids, default=0)

    def __len__(self) -> int:
        return len(self._labels)

    def select(self, rows: Iterable[int]) -> "Encoded":
        """A copy of some rows, in the order given."""
        chosen = Encoded(self._padding, typed=self._typed)
        for row in rows:
            start, end = self._starts[row], self._starts[row + 1]
            chosen.append(self._ids[start:end], self._types[start:end] if self._typed else (), self._labels[row])
        chosen.close()
        return chosen

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """int64 of (rows, longest): `input_ids`, `attention_mask`, where typed `token_type_ids`; (rows,): `labels`."""
        shape = (len(rows), max(self.lengths[row] for row in rows))
        ids = torch.full(shape, self._padding)
        mask, types = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for index, row in enumerate(rows):
            start, end = self._starts[row], self._starts[row + 1]
            ids[index, : end - start] = torch.tensor(self._ids[start:end], dtype=torch.long)
            mask[index, : end - start] = 1
            if self._typed:
                types[index, : end - start] = torch.tensor(self._types[start:end], dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self._typed else {})
        return inputs | {"labels": torch.tensor([self._labels[row] for row in rows])}


def by_length(rows: Iterable[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of rows sorted by length, so that little of a batch is padding."""
    order = sorted(rows, key=lambda row: lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def bucketed(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Batches of like length in random order: rows are shuffled, then sorted within buckets of some batches."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * BATCHES_IN_A_BUCKET
    batches = [
        batch
        for start in range(0, len(order), size)
        for batch in by_length(order[start : start + size], lengths, batch_size)
    ]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
