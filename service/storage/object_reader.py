"""A remote object as a file: read in one stream while it is read in order, asked for anew after a seek or a break."""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

_TRIES = 3
_BUFFER = 1 << 20


class ObjectReader(io.RawIOBase):
    """`read_from(start)` begins a stream with `read(size)` and `close()`; `broken` are the errors after which the rest
    is asked for again, a few times in a row, before `give_up()` is raised."""

    def __init__(
        self,
        read_from: Callable[[int], Any],
        size: int,
        broken: tuple[type[Exception], ...],
        give_up: Callable[[], Exception],
    ) -> None:
        self._read_from, self._size = read_from, size
        self._broken, self._give_up = broken, give_up
        self._at = 0
        self._stream: Any = None

    def buffered(self) -> BinaryIO:
        """The same, for small reads too."""
        return io.BufferedReader(self, _BUFFER)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another byte; the stream is given up when that is not the next one."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if start < 0:
            raise ValueError("before the start of the object")
        if start != self._at:
            self._drop()
            self._at = start
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one read of the stream does; 0 at the end."""
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        for _ in range(_TRIES):
            try:
                if self._stream is None:
                    self._stream = self._read_from(self._at)
                piece: bytes = self._stream.read(wanted)
            except self._broken:
                self._drop()
                continue
            if piece:
                buffer[: len(piece)] = piece
                self._at += len(piece)
                return len(piece)
            self._drop()
        raise self._give_up()

    def close(self) -> None:
        """End the stream."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
