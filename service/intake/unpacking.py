"""Where members of an archive end up: a folder that takes regular files only and counts every byte."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from service.errors import Invalid
from service.intake.limits import MAX_RATIO, RATIO_FREE_BYTES, Limits
from service.intake.names import Claims


@dataclass(frozen=True)
class Policy:
    """What may be in an archive. Both functions raise to refuse the whole upload."""

    admit: Callable[[str, bytes], bool]
    """Given a member's name and the start of its content: whether to keep it."""
    survey: Callable[[list[str]], None] = lambda names: None
    """Given all names, where they are known before the first member is unpacked."""


HEAD = 64 << 10
_DISK_CHECK = 64 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Stored:
    """A file that was written: bytes and hex SHA-256."""

    size: int
    sha256: str


class Unpacked:
    """A folder being filled. `files` are the kept ones, `names` every member's, both in archive order."""

    def __init__(self, folder: Path, limits: Limits, policy: Policy, packed: Callable[[], int]) -> None:
        """`packed` tells how many bytes of the archive were read so far."""
        self.folder = folder
        self.files: dict[str, Stored] = {}
        self._limits, self._policy, self._packed = limits, policy, packed
        self._claims = Claims()
        self._bytes = 0
        self._next_check = _DISK_CHECK

    @property
    def names(self) -> list[str]:
        """Every file's name, of those that are not kept too."""
        return self._claims.names

    def survey(self, raw_names: list[str]) -> None:
        """All names of an archive whose directory comes before its members are read."""
        self._policy.survey(raw_names)

    def add_folder(self, raw_name: str) -> None:
        """A directory entry: checked and counted, but folders are made only for files that are kept."""
        self._claims.add_folder(raw_name)

    def add_file(self, raw_name: str, size: int, content: Iterator[bytes]) -> None:
        """A regular file of `size` bytes, as the archive declares; reads all of `content`."""
        name = self._claims.add_file(raw_name)
        if self._bytes + size > self._limits.total:
            raise self._limits.refusal()
        head, rest = split_head(self._counted(content))
        if self._policy.admit(name, head):
            self.files[name] = self._write(name, chain((head,), rest))
        else:
            for _ in rest:
                pass

    def _counted(self, content: Iterator[bytes]) -> Iterator[bytes]:
        for piece in content:
            self._bytes += len(piece)
            if self._bytes > self._limits.total:
                raise self._limits.refusal()
            if self._bytes > RATIO_FREE_BYTES and self._bytes > MAX_RATIO * max(1, self._packed()):
                raise Invalid(
                    f"The archive unpacks to more than {MAX_RATIO} times its size.", code="ARCHIVE_RATIO_REFUSED"
                )
            if self._bytes > self._next_check:
                self._limits.check_disk()
                self._next_check = self._bytes + _DISK_CHECK
            yield piece

    def _write(self, name: str, content: Iterator[bytes]) -> Stored:
        *folders, base = name.split("/")
        descriptor = _open_folder(self.folder, folders)
        try:
            return _write_file(descriptor, base, content)
        finally:
            os.close(descriptor)


def split_head(content: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The start of a file that its policy looks at, and what is left of it."""
    head = bytearray()
    for piece in content:
        head += piece
        if len(head) >= HEAD:
            break
    return bytes(head), content


def _open_folder(root: Path, parts: list[str]) -> int:
    """A descriptor of a folder below `root`, made where it is missing; no link is followed on the way."""
    descriptor = os.open(root, _FOLDER)
    for part in parts:
        try:
            if not _exists(part, descriptor):
                os.mkdir(part, 0o700, dir_fd=descriptor)
            below = os.open(part, _FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_file(folder: int, name: str, content: Iterator[bytes]) -> Stored:
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=folder), "wb", buffering=0) as file:
        for piece in content:
            digest.update(piece)
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
    return Stored(size, digest.hexdigest())
