"""Bytes of uploads that can be resumed: a folder per model, in it a file per upload, whose length is the offset.

The files outlive the process, and nothing else remembers an offset, so that nothing can disagree with the bytes. They
are written, not flushed: what a power cut takes away shortens the file, and the client is told so. Locks on the folder
(shared by chunks, held alone by whoever completes or drops the model) and on the file die with their process.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.errors import ChecksumMismatch, Locked, NotFound
from service.intake.body import BodyIncomplete
from service.intake.sources import Source, pieces

_FOLDER = "resumable"
_DISK_CHECK_PIECES = 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Checksum:
    """What a chunk must hash to; `algorithm` is one of `ALGORITHMS`."""

    algorithm: str
    digest: bytes


ALGORITHMS = ("sha256", "sha1")
"""The second one finds accidents, as well as any, and is all that some clients of the protocol know."""


class Partial:
    """The file of one upload, open for one writer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = os.fstat(file.fileno()).st_size

    def append(self, source: Source, checksum: Checksum | None, check_disk: Callable[[], None]) -> None:
        """Write a chunk, piece by piece. Raises `ChecksumMismatch`, and whatever `source` and `check_disk` raise.

        A chunk that fails is dropped whole; only one without a checksum that broke off stays as far as it came.
        """
        start = self.offset
        try:
            digest = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
            for count, piece in enumerate(pieces(source)):
                if count % _DISK_CHECK_PIECES == 0:
                    check_disk()
                if digest is not None:
                    digest.update(piece)
                self._write(piece)
            if checksum is not None and digest is not None and digest.digest() != checksum.digest:
                raise ChecksumMismatch("The chunk is not what its Upload-Checksum says; it was dropped, send it again.")
        except BaseException as error:
            if checksum is not None or not isinstance(error, BodyIncomplete):
                os.ftruncate(self._file.fileno(), start)
                self.offset = start
            raise

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            written = self._file.write(rest)
            self.offset += written
            rest = rest[written:]


def folder_of(scratch: Path, model_id: str) -> Path:
    """Where the partial files of a model lie, each under its upload's id."""
    return scratch / _FOLDER / model_id


def offset(scratch: Path, model_id: str, upload_id: str) -> int:
    """Bytes of an upload that are here."""
    try:
        return (folder_of(scratch, model_id) / upload_id).stat().st_size
    except FileNotFoundError:
        return 0


def model_ids(scratch: Path) -> list[str]:
    """Models that have a folder."""
    return sorted(path.name for path in (scratch / _FOLDER).glob("*"))


def remove(scratch: Path, model_id: str) -> None:
    """Free the bytes of a model's uploads; a writer that is still there writes to nothing."""
    shutil.rmtree(folder_of(scratch, model_id), ignore_errors=True)


@contextmanager
def alone(scratch: Path, model_id: str) -> Iterator[Path]:
    """Keep every writer of a model away; yields its folder. Raises `Locked` while there is one."""
    with _folder(scratch, model_id, fcntl.LOCK_EX):
        yield folder_of(scratch, model_id)


@contextmanager
def writing(scratch: Path, model_id: str, upload_id: str) -> Iterator[Partial]:
    """Be the one writer of an upload. Raises `Locked` while there is another, `NotFound` when it was just dropped."""
    with _folder(scratch, model_id, fcntl.LOCK_SH) as folder:
        try:
            descriptor = os.open(upload_id, _OPEN_FILE, 0o600, dir_fd=folder)
        except FileNotFoundError as error:
            raise NotFound("There is no such upload.") from error
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            _lock(descriptor, fcntl.LOCK_EX)
            yield Partial(file)


@contextmanager
def _folder(scratch: Path, model_id: str, kind: int) -> Iterator[int]:
    path = folder_of(scratch, model_id)
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, _OPEN_FOLDER)
    try:
        _lock(descriptor, kind)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Locked(
            "Another request is writing to this upload, or completing its model; try again in a moment.",
            code="UPLOAD_LOCKED",
        ) from error
