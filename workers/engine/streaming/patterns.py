"""What is cut: single weights or square blocks by a threshold, or so many of each few neighbours in a row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.specs import N_OF_M
from service.specs.rounding import nearest
from workers.engine.streaming.ranking import HELD, Threshold, bracket, find_threshold
from workers.engine.streaming.shards import FORMATS, Bits, Tensor, as_float64, magnitudes, parts, read

Mask: TypeAlias = NDArray[np.bool_]
Pattern = Literal["unstructured", "2:4", "4:8", "block"]
Scope = Literal["uniform", "global"]

SAMPLE = 1 << 19
"""Most weights that are sampled for a bracket."""
RUN = 128
"""Neighbours that are sampled together: one small read each."""


class Cutter(Protocol):
    """Decides what stays of one or more matrices, which it is shown once each, in order."""

    tile: tuple[int, int]
    """Rows and columns that it needs to see together."""

    def keep(self, found: Bits, dtype: str) -> Mask:
        """Which weights of a part stay, given their magnitudes (rows, columns)."""


class Unit(Protocol):
    """What a ranking ranks."""

    tile: tuple[int, int]

    def count(self, tensor: Tensor) -> int:
        """How many a matrix has."""

    def keys(self, found: Bits, dtype: str) -> Bits:
        """Integers that rank the units in a part, the lowest first."""

    def spread(self, kept: Mask, shape: tuple[int, ...]) -> Mask:
        """Weights (rows, columns) that stay, given the units that stay."""


@dataclass(frozen=True)
class SingleWeights:
    """Weights by magnitude (Han et al., 2015); of several dtypes by their float64 bits, else by their own."""

    mixed: bool
    tile = (1, 1)

    def count(self, tensor: Tensor) -> int:
        """All numbers of the matrix."""
        return tensor.size

    def keys(self, found: Bits, dtype: str) -> Bits:
        """The bits without the sign rank as the magnitudes do."""
        return as_float64(found, dtype).view(np.int64) if self.mixed else found

    def spread(self, kept: Mask, shape: tuple[int, ...]) -> Mask:
        """Each stands for itself."""
        return kept


class Blocks:
    """Square blocks by mean magnitude (Narang et al., 2017, who took the largest); smaller ones at the edges."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.tile = (side, side)

    def count(self, tensor: Tensor) -> int:
        """Blocks down times blocks across."""
        rows, columns = tensor.shape
        return -(-rows // self.side) * -(-columns // self.side)

    def keys(self, found: Bits, dtype: str) -> Bits:
        """The bits of each block's mean as float64."""
        values, (rows, columns) = as_float64(found, dtype), found.shape
        down, across = np.arange(0, rows, self.side), np.arange(0, columns, self.side)
        strips = np.stack([values[row : row + self.side].sum(axis=0) for row in down])
        sums = np.add.reduceat(strips, across, axis=1)
        sizes = np.minimum(self.side, rows - down)[:, None] * np.minimum(self.side, columns - across)
        means: Bits = sums / sizes
        return means.view(np.int64)

    def spread(self, kept: Mask, shape: tuple[int, ...]) -> Mask:
        """All weights of the blocks."""
        rows, columns = shape
        return kept.repeat(self.side, axis=0)[:rows].repeat(self.side, axis=1)[:, :columns]


class Ranking:
    """Cuts a share of the units of some matrices, ranked together. Passes over them when it is first asked."""

    def __init__(self, tensors: list[Tensor], unit: Unit, share: float, advance: Callable[[int], None]) -> None:
        self.tile = unit.tile
        self._tensors, self._unit, self._share, self._advance = tensors, unit, share, advance

    def keep(self, found: Bits, dtype: str) -> Mask:
        """What lies above the threshold, and the first of what equals it."""
        kept = self._threshold.keep(self._unit.keys(found, dtype))
        return self._unit.spread(kept, found.shape)

    @cached_property
    def _threshold(self) -> Threshold:
        total = sum(self._unit.count(tensor) for tensor in self._tensors)
        own = isinstance(self._unit, SingleWeights) and not self._unit.mixed
        top = FORMATS[self._tensors[0].dtype if own else "F64"].infinity
        estimate = None
        if isinstance(self._unit, SingleWeights) and total > HELD:
            estimate = bracket(self._sample(self._unit, total), self._share, top)
        return find_threshold(self._keys, nearest(total * self._share), top, estimate)

    def _keys(self) -> Iterator[Bits]:
        for tensor in self._tensors:
            for _, bits in parts(tensor, self.tile):
                self._advance(bits.nbytes)
                yield self._unit.keys(magnitudes(bits, tensor.dtype), tensor.dtype)

    def _sample(self, unit: SingleWeights, total: int) -> Bits:
        """Keys of short runs that lie evenly over all matrices."""
        every = max(1, total // min(SAMPLE, total // 16))
        return np.concatenate([unit.keys(run, tensor.dtype) for tensor in self._tensors for run in runs(tensor, every)])


def runs(tensor: Tensor, every: int) -> Iterator[Bits]:
    """Magnitudes of about one weight in `every`, in runs of neighbours."""
    layout = FORMATS[tensor.dtype]
    width = np.dtype(layout.integer).itemsize
    with tensor.path.open("rb") as file:
        for at in range(tensor.start, tensor.end, RUN * every * width):
            bits = read(file, at, min(RUN * width, tensor.end - at)).view(layout.integer)
            yield magnitudes(bits, tensor.dtype)


class Neighbours:
    """Keeps the `kept` largest of every `group` neighbouring inputs (Mishra et al., 2021); of equals the first.

    At an output's end there are fewer neighbours, of which at most so many stay.
    """

    def __init__(self, kept: int, group: int, inputs_first: bool) -> None:
        self._kept, self._group, self._inputs_first = kept, group, inputs_first
        self.tile = (group, 1) if inputs_first else (1, group)

    def keep(self, found: Bits, dtype: str) -> Mask:
        """Which weights are among the largest of their group."""
        return self._keep(found.T).T if self._inputs_first else self._keep(found)

    def _keep(self, found: Bits) -> Mask:
        """Counts by how many of its group each weight is beaten; whole arrays are compared, one place with another."""
        rows, columns = found.shape
        padded = np.pad(found, ((0, 0), (0, -columns % self._group)), constant_values=-1)
        places = np.ascontiguousarray(padded.reshape(-1, self._group).T)
        beaten = np.zeros(places.shape, np.uint8)
        for later in range(1, self._group):
            for earlier in range(later):
                wins = places[earlier] >= places[later]
                beaten[later] += wins.view(np.uint8)
                beaten[earlier] += (~wins).view(np.uint8)
        kept: Mask = beaten < self._kept
        return np.ascontiguousarray(kept.T).reshape(rows, -1)[:, :columns]


def cutters(
    tensors: list[Tensor],
    pattern: Pattern,
    scope: Scope,
    share: float,
    block: int,
    inputs_first: bool,
    advance: Callable[[int], None],
) -> dict[str, Cutter]:
    """What cuts each of the matrices, by name. `advance` is told the bytes that rankings read."""
    if pattern in N_OF_M:
        return {tensor.name: Neighbours(*N_OF_M[pattern], inputs_first) for tensor in tensors}
    together = [tensors] if scope == "global" else [[tensor] for tensor in tensors]
    found: dict[str, Cutter] = {}
    for some in together:
        mixed = len({tensor.dtype for tensor in some}) > 1
        unit = Blocks(block) if pattern == "block" else SingleWeights(mixed)
        found |= dict.fromkeys((tensor.name for tensor in some), Ranking(some, unit, share, advance))
    return found
