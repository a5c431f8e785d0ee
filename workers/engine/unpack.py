"""Restores the weight files of a compressed model, bit for bit: `python unpack.py FOLDER OUT`.

Needs NumPy and nothing of ours. FOLDER is the model with this script in it; OUT gets the restored weight files and all
other files, and is what Transformers loads. Works piece by piece: a few megabytes of memory for a model of any size.

NAME.bitmask.safetensors holds NAME.safetensors, and is itself a safetensors file. Its metadata has the original header
as text, under `header`. A tensor T of the original is there as it was, or as two: `T:mask` (U8), one bit for each
element in order, the highest bit of a byte first, set where any bit of the element is; and `T:values`, those elements.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

SUFFIX = ".bitmask.safetensors"
MASK = ":mask"
VALUES = ":values"
INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Bytes of an element, and what it is handled as: its bits alone matter."""
PIECE = 1 << 16
"""Elements at a time; a whole number of bytes of the mask."""


class Tensors:
    """A safetensors file that is open for reading."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        length = int.from_bytes(self.read(0, 8), "little")
        self._first = 8 + length
        self._entries: dict[str, Any] = json.loads(self.read(8, length))
        self.metadata: dict[str, str] = self._entries.pop("__metadata__", {})

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def start(self, name: str) -> int:
        """Where a tensor begins in the file."""
        return self._first + int(self._entries[name]["data_offsets"][0])

    def read(self, at: int, length: int) -> bytes:
        """So many bytes; raises EOFError when the file is cut off."""
        self._file.seek(at)
        found = self._file.read(length)
        if len(found) != length:
            raise EOFError("the compressed file is cut off")
        return found


def main(folder: Path, out: Path) -> None:
    """Restores what is in `folder` to `out`, which is made where it is missing."""
    for path in [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / "unpack.py"]:
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(SUFFIX):
            restore(path, target.with_name(path.name.removesuffix(SUFFIX) + ".safetensors"))
        else:
            shutil.copyfile(path, target)


def restore(path: Path, target: Path) -> None:
    """Writes the one file that `path` holds."""
    with path.open("rb") as source, target.open("wb") as file:
        packed = Tensors(source)
        header = packed.metadata["header"].encode()
        file.write(len(header).to_bytes(8, "little") + header)
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            if name + MASK in packed:
                scatter(packed, name, int(np.prod(entry["shape"])), end - start, file)
            else:
                for at in range(0, end - start, PIECE):
                    file.write(packed.read(packed.start(name) + at, min(PIECE, end - start - at)))


def scatter(packed: Tensors, name: str, count: int, length: int, file: BinaryIO) -> None:
    """Writes a tensor of `count` elements and `length` bytes, with its values where the mask says."""
    integer = INTEGERS[length // count]
    mask_at, values_at = packed.start(name + MASK), packed.start(name + VALUES)
    for at in range(0, count, PIECE):
        elements: NDArray[Any] = np.zeros(min(PIECE, count - at), integer)
        mask = np.frombuffer(packed.read(mask_at + at // 8, (len(elements) + 7) // 8), np.uint8)
        places = np.flatnonzero(np.unpackbits(mask, count=len(elements)).view(np.bool_))
        elements[places] = np.frombuffer(packed.read(values_at, len(places) * elements.itemsize), integer)
        values_at += len(places) * elements.itemsize
        file.write(elements.data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
