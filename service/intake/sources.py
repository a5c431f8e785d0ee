"""What the readers of the door read from: anything with `read`, and a wrapper that counts and looks ahead."""

from collections.abc import Iterator
from typing import Protocol

PIECE = 256 << 10
"""Bytes that are read, hashed and written at a time: larger ones make nothing faster, and leave holes in the memory."""


class Source(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, at least one; empty at the end."""


class Metered:
    """A source that counts what was taken from it and can be looked into."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ahead = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end, without taking them."""
        while len(self._ahead) < size:
            piece = self._source.read(size - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        if self._ahead:
            piece, self._ahead = self._ahead[:size], self._ahead[size:]
        else:
            piece = self._source.read(size)
        self.count += len(piece)
        return piece


def pieces(source: Source) -> Iterator[bytes]:
    """All of a source, piece by piece."""
    while piece := source.read(PIECE):
        yield piece


def drain(source: Source) -> None:
    """Read a source to its end."""
    for _ in pieces(source):
        pass
