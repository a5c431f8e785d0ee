"""Bytes are given out only while they are what they were; the last ones not before all have been read."""

import errno
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest

from service.errors import InternalError
from service.storage import StorageMissing
from service.storage.verified import verified

DATA = bytes(range(256)) * 4096
DIGEST = sha256(DATA).hexdigest()
PIECE = 64 << 10


def reader(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    def read(start: int, length: int) -> Iterator[bytes]:
        for at in range(start, start + length, PIECE):
            yield data[at : min(at + PIECE, start + length)]

    return read


def given(data: bytes, start: int, length: int, size: int = len(DATA)) -> tuple[bytes, str | None]:
    """What came, and the code of the error that ended it."""
    came = bytearray()
    try:
        for piece in verified(reader(data), start, length, size=size, sha256=DIGEST):
            came += piece
    except InternalError as error:
        return bytes(came), error.code
    return bytes(came), None


@pytest.mark.parametrize(("start", "length"), [(0, len(DATA)), (7, len(DATA) - 7), (len(DATA) - 1, 1), (5, 100)])
def test_what_is_whole_comes_as_it_was(start: int, length: int) -> None:
    assert given(DATA, start, length) == (DATA[start : start + length], None)


@pytest.mark.parametrize("start", [0, 1, 400_000, len(DATA) - 1])
@pytest.mark.parametrize("at", [0, 400_000, len(DATA) - 1])
def test_the_end_does_not_come_when_a_byte_has_changed_anywhere(start: int, at: int) -> None:
    changed = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    came, code = given(changed, start, len(DATA) - start)
    assert code == "ARTIFACT_CORRUPT"
    assert len(came) <= max(0, len(DATA) - start - (256 << 10))


def test_an_empty_file_is_compared_too() -> None:
    empty = sha256(b"").hexdigest()
    assert b"".join(verified(reader(b""), 0, 0, size=0, sha256=empty)) == b""
    with pytest.raises(InternalError):
        list(verified(reader(b""), 0, 0, size=0, sha256=DIGEST))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (StorageMissing("k"), "ARTIFACT_MISSING"),
        (EOFError(), "ARTIFACT_CORRUPT"),
        (OSError(errno.EIO, "bad sector"), "ARTIFACT_CORRUPT"),
    ],
)
@pytest.mark.parametrize("length", [10, len(DATA)])
def test_what_cannot_be_read_has_a_name(fault: Exception, code: str, length: int) -> None:
    def read(start: int, length: int) -> Iterator[bytes]:
        yield DATA[start : start + 5]
        raise fault

    with pytest.raises(InternalError) as caught:
        list(verified(read, 0, length, size=len(DATA), sha256=DIGEST))
    assert caught.value.code == code


def test_other_faults_stay_what_they_are() -> None:
    def read(start: int, length: int) -> Iterator[bytes]:
        raise OSError(errno.EMFILE, "too many")
        yield b""

    with pytest.raises(OSError, match="too many"):
        list(verified(read, 0, 1, size=1, sha256=DIGEST))
