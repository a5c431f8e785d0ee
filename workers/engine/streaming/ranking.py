"""The exact threshold of a ranking that does not fit into memory.

A sample brackets it (Floyd and Rivest, 1975); one pass over all keys counts those below the bracket and keeps those
inside, or a histogram of them where they are too many. A bracket that missed, or a bin of several keys, takes further
passes (Munro and Paterson, 1980). So the memory is bounded, whatever is ranked, and the result is that of a full sort.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.engine.streaming.shards import Bits

HELD = 1 << 18
"""Keys inside a bracket that are kept as they are."""
BINS = 1 << 20
"""Bins of a histogram; an inside of a sample's bracket has fewer float32 numbers, so that one pass is enough."""


@dataclass
class Threshold:
    """All keys up to `key` are cut, but the first `spared` of those that equal it."""

    key: int
    spared: int

    def keep(self, keys: Bits) -> NDArray[np.bool_]:
        """Which of the next keys stay; has to see all of them once, in order."""
        kept = keys > self.key
        if self.spared:
            ties = np.flatnonzero(keys == self.key)[: self.spared]
            kept.flat[ties] = True
            self.spared -= len(ties)
        return kept


def find_threshold(
    keys: Callable[[], Iterable[Bits]], count: int, top: int, estimate: tuple[int, int] | None = None
) -> Threshold:
    """The threshold that cuts `count` keys, all of them in [0, top): of equals the last ones.

    `keys` begins a new pass over all keys; `estimate` is a range [low, high) where the threshold may lie.
    """
    if count == 0:
        return Threshold(-1, 0)
    low, high = estimate or (0, top)
    while True:
        census = Census(low, high)
        for some in keys():
            census.add(some)
        if count <= census.below:
            low, high = 0, low
        elif count > census.below + census.inside:
            low, high = high, top
        else:
            low, high, rank, equal = census.locate(count - census.below)
            if high - low == 1:
                return Threshold(low, equal - rank)


def bracket(sample: Bits, share: float, top: int) -> tuple[int, int]:
    """A range [low, high) that almost surely holds the quantile `share`: eight standard errors to either side."""
    ordered = np.sort(sample)
    rank, margin = share * len(ordered), 4 * math.sqrt(len(ordered))
    first, last = math.floor(rank - margin), math.ceil(rank + margin)
    return (int(ordered[first]) if first >= 0 else 0), (int(ordered[last]) + 1 if last < len(ordered) else top)


class Census:
    """Counts keys below [low, high) and ranks those inside."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.below = 0
        self.inside = 0
        self._shift = max(0, (high - low - 1).bit_length() - (BINS.bit_length() - 1))
        self._counts: NDArray[np.int64] | None = None
        self._held: list[Bits] = []
        self._waiting = 0

    def add(self, keys: Bits) -> None:
        """Counts some more."""
        below = keys < self.low
        self.below += int(np.count_nonzero(below))
        found = keys[np.not_equal(keys < self.high, below, out=below)]
        if len(found) == 0:
            return
        self.inside += len(found)
        self._held.append(found)
        self._waiting += len(found)
        if self._waiting > HELD:
            self._count()

    def locate(self, rank: int) -> tuple[int, int, int, int]:
        """The narrower range that holds the key of `rank`, from 1, of those inside; its rank there; how many are there.

        The range is a single key unless a histogram was too coarse.
        """
        if self._counts is None:
            held = np.concatenate(self._held)
            key = int(np.partition(held, rank - 1)[rank - 1])
            return key, key + 1, rank - int(np.count_nonzero(held < key)), int(np.count_nonzero(held == key))
        self._count()
        sums = self._counts.cumsum()
        place = int(np.searchsorted(sums, rank))
        equal = int(self._counts[place])
        low = self.low + (place << self._shift)
        return low, min(self.high, low + (1 << self._shift)), rank - int(sums[place]) + equal, equal

    def _count(self) -> None:
        """Puts the keys that wait into the histogram."""
        if not self._held:
            return
        places = (np.concatenate(self._held).astype(np.int64) - self.low) >> self._shift
        counts = np.bincount(places, minlength=((self.high - self.low - 1) >> self._shift) + 1)
        self._counts = counts if self._counts is None else self._counts + counts
        self._held, self._waiting = [], 0
