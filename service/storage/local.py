"""Storage in a folder of this machine."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from service.errors import InsufficientStorage
from service.storage.keys import StorageMissing, checked

_UNFINISHED = ".unfinished"
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class LocalStorage:
    """Files below one folder; a file appears by a rename, so that it is never seen half-written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    def put(self, key: str, source: Path) -> None:
        """Move a finished file in, through a copy beside its place where `source` is on another file system."""
        path = self._path(key)
        try:
            self._make_folder(path.parent)
            try:
                _sync(source)
                source.replace(path)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(source, path)
            _sync(path.parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientStorage("The service's storage is full; nothing was kept.") from error
            raise

    def _make_folder(self, folder: Path) -> None:
        """Make a folder whose own entry survives a crash, too."""
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)

    def _copy(self, source: Path, path: Path) -> None:
        unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
        try:
            shutil.copyfile(source, unfinished)
            _sync(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        source.unlink()

    def open(self, key: str) -> BinaryIO:
        """A seekable reader; links are not followed."""
        try:
            return os.fdopen(os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except FileNotFoundError as error:
            raise StorageMissing(key) from error

    def link(self, key: str, target: Path) -> None:
        """A hard link, which keeps the bytes when the key is deleted; a copy on another file system."""
        try:
            link_or_copy(self._path(key), target)
        except FileNotFoundError as error:
            raise StorageMissing(key) from error

    def size(self, key: str) -> int:
        """Bytes of a file."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError as error:
            raise StorageMissing(key) from error

    def delete_prefix(self, prefix: str) -> None:
        """Remove a folder of files, or one file."""
        path = self._path(prefix.rstrip("/"))
        with contextlib.suppress(FileNotFoundError):  # another process deletes the same
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below a folder, in order."""
        for path in sorted(self._path(prefix.rstrip("/")).rglob("*")):
            if path.is_file() and path.suffix != _UNFINISHED:
                yield path.relative_to(self.root).as_posix()

    def prefixes(self, root: str, parts: int) -> Iterator[str]:
        """Folders of that depth, empty ones too."""
        below = parts - root.count("/") - 1
        for path in sorted(self._path(root).glob("/".join("*" * below))):
            yield path.relative_to(self.root).as_posix()

    def free_bytes(self) -> int | None:
        """Room on the file system."""
        return shutil.disk_usage(self.root).free

    def presigned_url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """None: only the service itself can read the folder."""
        return None


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that nobody writes to any more; its bytes again where the disk has no such links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
