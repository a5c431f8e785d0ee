"""Safetensors files, read in pieces: eight bytes of length, a JSON header, then the bytes of all tensors."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.engine.failures import EngineError

Bits: TypeAlias = NDArray[Any]
"""Elements as signed integers of their own width. Without its sign bit a float ranks by them as by its magnitude."""

PIECE = 1 << 18
"""Bytes worked on at a time: several arrays of it fit into a core's own cache, where all work but the reading is."""

WIDEST = 4
"""Rows of tiles up to so many pieces long are read at once: a piece of each of them would take many small reads."""


class Format(NamedTuple):
    """A float's layout: the integer of its width, all bits but the sign, and what infinity is of those."""

    integer: type[np.signedinteger[Any]]
    magnitude: int
    infinity: int


FORMATS = {
    "F64": Format(np.int64, 2**63 - 1, 0x7FF0 << 48),
    "F32": Format(np.int32, 2**31 - 1, 0x7F80 << 16),
    "F16": Format(np.int16, 2**15 - 1, 0x7C00),
    "BF16": Format(np.int16, 2**15 - 1, 0x7F80),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor: where its bytes start and end in its file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is one of floats that magnitudes can rank."""
        return len(self.shape) == 2 and self.dtype in FORMATS and self.size > 0


@dataclass(frozen=True)
class Shard:
    """A file of weights: its header's text as it is, and its tensors in the order of their bytes."""

    path: Path
    size: int
    header: str
    tensors: list[Tensor]


class Part(NamedTuple):
    """A rectangle of a matrix."""

    row: int
    rows: int
    column: int
    columns: int


def read_shards(folder: Path) -> list[Shard]:
    """The weight files of a folder by name. Raises EngineError MODEL_UNUSABLE for one that is cut off."""
    return [read_shard(path) for path in sorted(folder.glob("*.safetensors"))]


def read_shard(path: Path) -> Shard:
    """The header of one file. Raises EngineError MODEL_UNUSABLE when the file is cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(read(file, 0, 8).tobytes(), "little")
        if length > size - 8:
            raise cut_off()
        header = read(file, 8, length).tobytes().decode()
    first = 8 + length
    tensors = [
        Tensor(path, name, entry["dtype"], tuple(entry["shape"]), *(first + at for at in entry["data_offsets"]))
        for name, entry in json.loads(header).items()
        if name != "__metadata__"
    ]
    if size < max([first, *(tensor.end for tensor in tensors)]):
        raise cut_off()
    return Shard(path, size, header, sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)))


def cut_off() -> EngineError:
    """The error of a file that ends before its header says so."""
    return EngineError("MODEL_UNUSABLE", "a weight file is cut off; upload it again", blame="user")


def read(file: BinaryIO, at: int, length: int) -> NDArray[np.uint8]:
    """So many bytes from there. Raises EngineError MODEL_UNUSABLE when there are fewer."""
    held = np.empty(length, np.uint8)
    fill(held, file, at)
    return held


def fill(held: NDArray[np.uint8], file: BinaryIO, at: int) -> None:
    """Reads what fits into `held` from there. Raises EngineError MODEL_UNUSABLE when there is less."""
    file.seek(at)
    if file.readinto(held) != len(held):  # type: ignore[attr-defined] # every file opened for reading bytes has it
        raise cut_off()


def spans(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Pieces of a range of bytes as pairs of start and length."""
    for at in range(start, end, PIECE):
        yield at, min(PIECE, end - at)


def parts(tensor: Tensor, tile: tuple[int, int]) -> Iterator[tuple[Part, Bits]]:
    """A matrix in rectangles of whole tiles (rows, columns), tile by tile in order; only its edges may cut tiles.

    The next rectangle takes the place of the last one in memory.
    """
    integer = np.dtype(FORMATS[tensor.dtype].integer)
    held = np.empty((0, 0), integer)
    with tensor.path.open("rb") as file:
        for part in rectangles(tensor.shape, tile, PIECE // integer.itemsize):
            if held.shape != (part.rows, part.columns):
                held = np.empty((part.rows, part.columns), integer)
            for piece, at in stretches(tensor, part, held):
                fill(piece, file, at)
            yield part, held


def write_part(file: BinaryIO, tensor: Tensor, part: Part, bits: Bits) -> None:
    """Writes one rectangle to its place."""
    for piece, at in stretches(tensor, part, bits):
        file.seek(at)
        file.write(piece.data)


def rectangles(shape: tuple[int, ...], tile: tuple[int, int], limit: int) -> Iterator[Part]:
    """Covers a matrix with whole tiles: about `limit` elements at once, or one tile where that is more."""
    rows, columns = shape
    high, wide = tile
    rows_at_once = max(1, limit // (columns * high)) * high
    wide = columns if columns * high <= WIDEST * limit else max(1, limit // (high * wide)) * wide
    for row in range(0, rows, rows_at_once):
        for column in range(0, columns, wide):
            yield Part(row, min(rows_at_once, rows - row), column, min(wide, columns - column))


def stretches(tensor: Tensor, part: Part, bits: Bits) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The bytes of a rectangle, in memory and where they start in the file: whole rows at once, others one by one."""
    columns = tensor.shape[1]
    start = tensor.start + (part.row * columns + part.column) * bits.itemsize
    if part.columns == columns:
        yield bits.reshape(-1).view(np.uint8), start
        return
    for row in range(part.rows):
        yield bits[row].view(np.uint8), start + row * columns * bits.itemsize


def magnitudes(bits: Bits, dtype: str) -> Bits:
    """The elements without their signs. Raises EngineError NOT_FINITE for NaN and infinity, which have no rank."""
    layout = FORMATS[dtype]
    found: Bits = np.bitwise_and(bits, layout.magnitude)
    if found.max(initial=0) >= layout.infinity:
        message = "a weight is NaN or infinite, so that magnitudes cannot be ranked; upload a sound model"
        raise EngineError("NOT_FINITE", message, blame="user")
    return found


def as_float64(found: Bits, dtype: str) -> NDArray[np.float64]:
    """What such magnitudes are as numbers; exact."""
    if dtype == "BF16":
        return (found.astype(np.int32) << 16).view(np.float32).astype(np.float64)
    return found.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float64)
