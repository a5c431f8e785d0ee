"""Magnitude pruning of a model's weight files that never loads the model: memory stays the same whatever its size.

Two passes over the matrices, one that finds the thresholds and one that writes; all other bytes are copied. Zeros save
no time on a CPU or a plain GPU, but they compress. Nothing here imports PyTorch.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from workers.engine.failures import EngineError
from workers.engine.streaming.patterns import Cutter, Pattern, Scope, cutters
from workers.engine.streaming.shards import (
    FORMATS,
    Shard,
    Tensor,
    magnitudes,
    parts,
    read,
    read_shards,
    spans,
    write_part,
)

__all__ = ["Report", "count_zeros", "prune_shards", "verify_shards"]


OTHER_ZEROS = "there are other zeros than were reported"


@dataclass(frozen=True)
class Report:
    """What was considered and what is zero now, `tensors` by name; zeros that were there before are counted."""

    weights: int
    zeros: int
    tensors: dict[str, int]
    seconds: float


class Meter:
    """Tells how much of so many bytes is done."""

    def __init__(self, total: int, progress: Callable[[float], None]) -> None:
        self._total, self._done, self._progress = max(1, total), 0, progress

    def advance(self, length: int) -> None:
        """So many more are done; further passes of a ranking are not part of the total."""
        self._done += length
        self._progress(min(1.0, self._done / self._total))


def prune_shards(
    source: Path,
    target: Path,
    *,
    share: float,
    pattern: Pattern,
    scope: Scope,
    block: int,
    inputs_first: bool = False,
    prunable: Callable[[str, tuple[int, ...]], bool],
    progress: Callable[[float], None],
) -> Report:
    """Writes the weight files of the model in `source`, and their index, to `target` with weights set to zero.

    Cuts the matrices (F16, BF16, F32, F64) that are `prunable` by name and shape. `share` in [0, 1] of the weights, or
    of the blocks of `block` by `block`, is cut of each matrix (uniform) or of all together (global), rounded to the
    nearest, halves upwards; of equals the last ones in the order of files and bytes. The patterns 2:4 and 4:8 need
    neither share nor scope, but must know whether matrices are stored as (inputs, outputs). `progress` is told the
    share of the work that is done. Raises EngineError NOT_FINITE, and
    MODEL_UNUSABLE for a file that is cut off; what is in `target` is then worth nothing.
    """
    begun = time.monotonic()
    target.mkdir(exist_ok=True)
    shards = read_shards(source)
    tensors = [tensor for shard in shards for tensor in shard.tensors if tensor.is_matrix]
    tensors = [tensor for tensor in tensors if prunable(tensor.name, tensor.shape)]
    ranked = sum(tensor.end - tensor.start for tensor in tensors) if pattern in ("unstructured", "block") else 0
    meter = Meter(sum(shard.size for shard in shards) + ranked, progress)
    deciding = cutters(tensors, pattern, scope, share, block, inputs_first, meter.advance)
    zeros: dict[str, int] = {}
    for shard in shards:
        zeros |= _rewrite(shard, target / shard.path.name, deciding, meter)
    for index in source.glob("*.safetensors.index.json"):
        shutil.copyfile(index, target / index.name)
    weights = sum(tensor.size for tensor in tensors)
    return Report(weights, sum(zeros.values()), zeros, time.monotonic() - begun)


def _rewrite(shard: Shard, target: Path, deciding: dict[str, Cutter], meter: Meter) -> dict[str, int]:
    """Copies one file but for the matrices to cut; returns their zeros by name."""
    zeros: dict[str, int] = {}
    with shard.path.open("rb") as source, target.open("wb") as file:
        at = 0
        for tensor in shard.tensors:
            if tensor.name not in deciding:
                continue
            _copy(source, file, at, tensor.start, meter)
            zeros[tensor.name] = _cut(tensor, deciding[tensor.name], file, meter)
            at = tensor.end
            file.seek(at)
        _copy(source, file, at, shard.size, meter)
    return zeros


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int, meter: Meter) -> None:
    for at, length in spans(start, end):
        target.write(read(source, at, length).data)
        meter.advance(length)


def _cut(tensor: Tensor, cutter: Cutter, file: BinaryIO, meter: Meter) -> int:
    """Writes one matrix with its cut; returns its zeros."""
    left = 0
    for part, bits in parts(tensor, cutter.tile):
        found = magnitudes(bits, tensor.dtype)
        kept = cutter.keep(found, tensor.dtype)
        write_part(file, tensor, part, np.multiply(bits, kept, out=bits))
        left += int(np.count_nonzero(np.multiply(found, kept, out=found)))
        meter.advance(bits.nbytes)
    return tensor.size - left


def verify_shards(source: Path, target: Path, report: Report, *, refitted: bool = False) -> None:
    """Reads both folders again, piece by piece, and compares them with the report.

    Raises EngineError VERIFICATION_FAILED unless names, shapes and dtypes agree, every tensor that was not cut is the
    same byte for byte, every weight of the others is the same bit for bit or zero, and so many are zero as reported.
    Where weights were `refitted`, those of the others may be any.
    """
    before, after = read_shards(source), read_shards(target)
    described = [[(shard.path.name, shard.size, shard.header) for shard in shards] for shards in (before, after)]
    _check(described[0] == described[1], "files, names, shapes or types differ")
    known = {tensor.name: tensor for shard in before for tensor in shard.tensors}
    _check(report.tensors.keys() <= known.keys(), "a tensor that was cut is missing")
    _check(report.zeros == sum(report.tensors.values()), "its zeros do not add up")
    _check(report.weights == sum(known[name].size for name in report.tensors), "its weights do not add up")
    for old, new in zip(before, after, strict=True):
        at = 0
        for tensor, written in zip(old.tensors, new.tensors, strict=True):
            if tensor.name in report.tensors:
                _check_same(old.path, new.path, at, tensor.start)
                if refitted:
                    _check(count_zeros([written]) == report.tensors[tensor.name], OTHER_ZEROS)
                else:
                    _check_cut(tensor, written, report.tensors[tensor.name])
                at = tensor.end
        _check_same(old.path, new.path, at, old.size)


def count_zeros(tensors: list[Tensor]) -> int:
    """Elements of floats that are zero, of either sign."""
    return sum(_zeros_in(tensor) for tensor in tensors if tensor.dtype in FORMATS)


def _zeros_in(tensor: Tensor) -> int:
    layout, zeros = FORMATS[tensor.dtype], 0
    with tensor.path.open("rb") as file:
        for at, length in spans(tensor.start, tensor.end):
            bits = read(file, at, length).view(layout.integer)
            zeros += bits.size - int(np.count_nonzero(np.bitwise_and(bits, layout.magnitude, out=bits)))
    return zeros


def _check_same(before: Path, after: Path, start: int, end: int) -> None:
    with before.open("rb") as old, after.open("rb") as new:
        for at, length in spans(start, end):
            same = np.array_equal(read(old, at, length), read(new, at, length))
            _check(same, "bytes outside the weights that were cut differ")


def _check_cut(tensor: Tensor, written: Tensor, zeros: int) -> None:
    for (_, old), (_, new) in zip(parts(tensor, (1, 1)), parts(written, (1, 1)), strict=True):
        zeros -= new.size - int(np.count_nonzero(magnitudes(new, written.dtype)))
        _check(not np.any(np.multiply(new, old != new)), "a weight that was kept differs")
    _check(zeros == 0, OTHER_ZEROS)


def _check(holds: bool, fault: str) -> None:
    if not holds:
        raise EngineError("VERIFICATION_FAILED", f"the pruned weights failed their check: {fault}")
