"""Stored bytes are compared with their digest while they are read: the last come only when all are what they were.

So nobody gets a damaged file whole: whoever has its end has got it from a reading of all of it.
"""

import errno
import hashlib
from collections import deque
from collections.abc import Callable, Iterator

from service.errors import InternalError
from service.storage.keys import StorageMissing

Reader = Callable[[int, int], Iterator[bytes]]

READ_AGAIN_BYTES = 1 << 30
"""A range that begins further on is not compared: reading what lies before it would take longer than clients wait."""

_HELD_BYTES = 256 << 10


def verified(read: Reader, start: int, length: int, *, size: int, sha256: str) -> Iterator[bytes]:
    """The bytes of `read(start, length)` out of `size`, compared with the hex digest of all where they reach the end.

    What comes before them is read, too, for which empty pieces stand. Raises `InternalError` with the code
    ARTIFACT_CORRUPT or ARTIFACT_MISSING.
    """
    try:
        if start + length == size and start <= READ_AGAIN_BYTES:
            yield from _compared(read, start, length, sha256)
        else:
            yield from read(start, length)
    except StorageMissing:
        raise missing() from None
    except EOFError:
        raise _corrupt() from None
    except OSError as error:
        if error.errno == errno.EIO:
            raise _corrupt() from error
        raise


def _compared(read: Reader, start: int, length: int, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in read(0, start):
        digest.update(piece)
        yield b""
    held: deque[bytes] = deque()
    waiting = 0
    for piece in read(start, length):
        digest.update(piece)
        held.append(piece)
        waiting += len(piece)
        while waiting - len(held[0]) >= _HELD_BYTES:
            waiting -= len(held[0])
            yield held.popleft()
    if digest.hexdigest() != sha256:
        raise _corrupt()
    yield from held


def missing() -> InternalError:
    """The error for a file that its row promises."""
    return InternalError("The service has lost a file that it had stored.", code="ARTIFACT_MISSING")


def _corrupt() -> InternalError:
    detail = "What is stored is no longer what was stored; none of it counts, neither what came before."
    return InternalError(detail, code="ARTIFACT_CORRUPT")
