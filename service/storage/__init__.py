"""Storage: where the bytes of models, data sets and artifacts lie, chosen by the scheme of one URL."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from service.storage.keys import StorageMissing, UnusableStorage
from service.storage.local import LocalStorage

__all__ = ["STORAGES", "Storage", "StorageMissing", "UnusableStorage", "all_or_nothing", "open_storage"]


class Storage(Protocol):
    """Files by key: slash-separated names below one root. A file is there whole or not at all.

    A storage that does not answer raises `Unavailable` with the code STORAGE_AWAY.
    """

    def put(self, key: str, source: Path) -> None:
        """Move the finished file `source` in; durable when it returns. Raises `InsufficientStorage`."""

    def open(self, key: str) -> BinaryIO:
        """A seekable reader. Raises `StorageMissing`."""

    def link(self, key: str, target: Path) -> None:
        """Place a file at `target`, which does not exist, without a second copy of its bytes where that is possible.

        The target is never written to. Raises `StorageMissing`.
        """

    def size(self, key: str) -> int:
        """Bytes of a file. Raises `StorageMissing`."""

    def delete_prefix(self, prefix: str) -> None:
        """Remove every file below `prefix`; nothing there is no error."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix`, in order."""

    def prefixes(self, root: str, parts: int) -> Iterator[str]:
        """Prefixes of so many parts that begin with `root`, in order: also where a crash left no whole file below."""

    def free_bytes(self) -> int | None:
        """Room that is left; None where there is no bound."""

    def presigned_url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """An address that gives the file to whoever has it, for some minutes; None where there is no such thing."""


@contextmanager
def all_or_nothing(storage: Storage, prefix: str) -> Iterator[None]:
    """When the block raises, nothing stays below `prefix`."""
    try:
        yield
    except BaseException:
        storage.delete_prefix(prefix)
        raise


def _local(url: str) -> Storage:
    return LocalStorage(Path(urlsplit(url).path))


def _s3(url: str) -> Storage:
    # Late: the library is an extra, and takes a while to import.
    from service.storage.s3 import S3Storage

    return S3Storage.from_url(url)


STORAGES: dict[str, Callable[[str], Storage]] = {"file": _local, "s3": _s3}


def open_storage(url: str) -> Storage:
    """The storage that a URL names. Raises `UnusableStorage` with what to change."""
    scheme = urlsplit(url).scheme
    if scheme not in STORAGES:
        raise UnusableStorage(f"storage URLs start with one of {', '.join(f'{name}://' for name in STORAGES)}")
    return STORAGES[scheme](url)
