"""A tar archive that is never stored: its layout follows from names and sizes, so any range of it can be read."""

import hashlib
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
PIECE = 256 << 10

Opener = Callable[[str], BinaryIO]


class TarLayout:
    """The archive of `(name, size)` pairs, in their order, the same bytes at all times (no dates, no owners)."""

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self._parts: list[tuple[int, int, bytes | str]] = []
        self.size = 0
        for name, size in files:
            self._add(_header(name, size))
            self._parts.append((self.size, size, name))
            self.size += size
            self._add(bytes(-size % BLOCK))
        self._add(bytes(2 * BLOCK))
        self._starts = [start for start, _, _ in self._parts]

    def _add(self, data: bytes) -> None:
        if data:
            self._parts.append((self.size, len(data), data))
            self.size += len(data)

    def read(self, start: int, length: int, opener: Opener) -> Iterator[bytes]:
        """The bytes from `start`, in pieces of at most 256 KiB; `opener` opens a file by its name in the archive."""
        end = min(start + length, self.size)
        index = max(0, bisect_right(self._starts, start) - 1)
        while start < end:
            at, size, part = self._parts[index]
            index += 1
            wanted = min(end, at + size) - start
            if wanted <= 0:
                continue
            if isinstance(part, bytes):
                yield part[start - at : start - at + wanted]
            else:
                with opener(part) as file:
                    yield from read_range(file, start - at, wanted)
            start += wanted

    def sha256(self, opener: Opener) -> str:
        """Hex digest of the whole archive."""
        digest = hashlib.sha256()
        for piece in self.read(0, self.size, opener):
            digest.update(piece)
        return digest.hexdigest()


def read_range(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """A range of an open file in pieces. Raises `EOFError` where the file is shorter than promised."""
    file.seek(start)
    while length > 0:
        piece = file.read(min(PIECE, length))
        if not piece:
            raise EOFError("a stored file is shorter than its record says")
        length -= len(piece)
        yield piece


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)
