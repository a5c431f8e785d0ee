"""The compressed form of a model with many zeros: a mask of one bit per weight, and the weights that are not zero.

Half of the weights as zeros make 0.53 of the size in float32 and 0.56 in float16. `unpack.py`, which goes with the
files, says how they are laid out and restores the originals bit for bit. A weight file with nothing to gain stays as
it is; the others change their names, so that nobody loads them by mistake.
"""

import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers.engine import unpack
from workers.engine.failures import EngineError
from workers.engine.streaming.shards import Shard, Tensor, read, read_shard, spans

LEAST_GAIN = 512
"""Bytes that a tensor has to save: two more entries of a header cost some, too."""


@dataclass(frozen=True)
class Packed:
    """A tensor that is stored as mask and values; `count` elements are not zero."""

    tensor: Tensor
    width: int
    count: int

    @property
    def gain(self) -> int:
        """Bytes saved."""
        return (self.tensor.size - self.count) * self.width - -(-self.tensor.size // 8)


def compress_folder(source: Path, target: Path) -> int:
    """Writes the model in `source` to `target` with its weight files compressed, and `unpack.py`.

    All other files are copied. Returns the bytes of the weight files. Raises EngineError MODEL_UNUSABLE for a weight
    file that is cut off.
    """
    for path in _files(source):
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors" or not _compress(read_shard(source / path), copy):
            shutil.copyfile(source / path, copy)
    shutil.copyfile(unpack.__file__, target / "unpack.py")
    return sum(path.stat().st_size for path in target.rglob("*.safetensors"))


def verify_compressed(source: Path, compressed: Path, scratch: Path) -> None:
    """Unpacks the compressed form of the model in `source` and compares every file, byte for byte.

    `scratch` is made for it and removed. Raises EngineError VERIFICATION_FAILED.
    """
    unpack.main(compressed, scratch)
    try:
        wanted, found = _files(source), _files(scratch)
        same = wanted == found and all(filecmp.cmp(source / path, scratch / path, shallow=False) for path in wanted)
    finally:
        shutil.rmtree(scratch)
    if not same:
        raise EngineError("VERIFICATION_FAILED", "the compressed form did not unpack to the model that it was made of")


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _compress(shard: Shard, copy: Path) -> bool:
    """Writes the compressed form of one file next to where its copy would be; False where nothing is to gain."""
    packed = {tensor.name: found for tensor in shard.tensors if (found := _pack(tensor)) and found.gain > LEAST_GAIN}
    gaps = shard.size - 8 - len(shard.header.encode()) - sum(tensor.end - tensor.start for tensor in shard.tensors)
    if not packed or gaps:
        return False
    header, starts = _layout(shard, packed)
    with shard.path.open("rb") as source, copy.with_name(copy.stem + unpack.SUFFIX).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in shard.tensors:
            if tensor.name in packed:
                places = [8 + len(header) + starts[tensor.name + kind] for kind in (unpack.MASK, unpack.VALUES)]
                _gather(source, packed[tensor.name], file, *places)
            else:
                file.seek(8 + len(header) + starts[tensor.name])
                for at, length in spans(tensor.start, tensor.end):
                    file.write(read(source, at, length).data)
    return True


def _pack(tensor: Tensor) -> Packed | None:
    """Counts what is not zero; None where elements are no whole number of bytes."""
    width, rest = divmod(tensor.end - tensor.start, max(1, tensor.size))
    if rest or width not in unpack.INTEGERS:
        return None
    with tensor.path.open("rb") as file:
        counts = [np.count_nonzero(_bits(file, at, length, width)) for at, length in spans(tensor.start, tensor.end)]
    return Packed(tensor, width, int(sum(counts)))


def _layout(shard: Shard, packed: dict[str, Packed]) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor starts behind it: wide elements first, so that all are aligned."""
    stored: list[tuple[int, str, str, list[int], int]] = []
    for tensor in shard.tensors:
        length = tensor.end - tensor.start
        if found := packed.get(tensor.name):
            masks, values = -(-tensor.size // 8), found.count * found.width
            stored.append((found.width, tensor.name + unpack.VALUES, tensor.dtype, [found.count], values))
            stored.append((1, tensor.name + unpack.MASK, "U8", [masks], masks))
        else:
            width = length // max(1, tensor.size)
            stored.append((width, tensor.name, tensor.dtype, list(tensor.shape), length))
    header: dict[str, Any] = {"__metadata__": {"format": "secateur-bitmask-1", "header": shard.header}}
    starts, at = {}, 0
    for _, name, dtype, shape, length in sorted(stored, key=lambda item: -item[0]):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + length]}
        starts[name], at = at, at + length
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), starts


def _gather(source: BinaryIO, packed: Packed, file: BinaryIO, mask_at: int, values_at: int) -> None:
    """Writes the mask and the values of one tensor."""
    for at, length in spans(packed.tensor.start, packed.tensor.end):
        bits = _bits(source, at, length, packed.width)
        found = bits != 0
        # Indexing with integers is ten times as fast as with booleans when every other one is true.
        mask, values = np.packbits(found), bits.take(np.flatnonzero(found))
        for place, array in ((mask_at, mask), (values_at, values)):
            file.seek(place)
            file.write(array.data)
        mask_at, values_at = mask_at + mask.nbytes, values_at + values.nbytes


def _bits(file: BinaryIO, at: int, length: int, width: int) -> NDArray[Any]:
    return read(file, at, length).view(unpack.INTEGERS[width])
