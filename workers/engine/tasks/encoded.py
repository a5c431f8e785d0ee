"""Tokenized rows, end to end in flat arrays: a million rows as Python lists would take gigabytes."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BATCHES_IN_A_BUCKET = 32


@dataclass(frozen=True)
class Column:
    """Numbers of every row: as many as it likes, filled up with `padding`, or exactly one where that is None."""

    padding: int | None = None
    kind: Literal["b", "i", "q", "d"] = "i"
    """Type code of `array`; `d` becomes float32 in a batch, all others int64."""
    mask: str | None = None
    """Name under which a batch says what is not padding."""


class Encoded:
    """Rows of numbers in named columns."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._values = {name: array(column.kind) for name, column in columns.items()}
        self._starts = {name: array("q", [0]) for name in columns}
        self.lengths = array("i")
        """How long every row is in its longest column."""

    def append(self, row: Mapping[str, Sequence[Any]]) -> None:
        """Adds a row, which has every column."""
        for name, values in self._values.items():
            values.extend(row[name])
            self._starts[name].append(len(values))
        self.lengths.append(max(len(row[name]) for name in self._columns))

    def __len__(self) -> int:
        return len(self.lengths)

    def highest(self, column: str) -> float:
        """The largest number in a column; 0 where it is not there or empty."""
        return float(max(self._values.get(column, ()), default=0))

    def longest(self, column: str) -> int:
        """The most numbers that a row has in a column."""
        starts = self._starts[column]
        return max((end - start for start, end in pairwise(starts)), default=0)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Columns and masks of some rows, (rows, longest) where padded, else (rows,)."""
        batch = {}
        for name, column in self._columns.items():
            pieces = [self._row(name, row) for row in rows]
            if column.padding is None:
                batch[name] = _tensor(np.concatenate(pieces))
                continue
            filled = np.full((len(rows), max(map(len, pieces))), column.padding, dtype=pieces[0].dtype)
            mask = np.zeros(filled.shape, dtype=np.int64)
            for index, piece in enumerate(pieces):
                filled[index, : len(piece)] = piece
                mask[index, : len(piece)] = 1
            batch[name] = _tensor(filled)
            if column.mask is not None:
                batch[column.mask] = torch.from_numpy(mask)
        return batch

    def _row(self, name: str, row: int) -> NDArray[Any]:
        start, end = self._starts[name][row : row + 2]
        return np.array(self._values[name][start:end])


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))


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
