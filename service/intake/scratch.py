"""Folders of uploads under way: gone when the upload ends, swept at the next start when the process was killed."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import folders
from service.errors import InternalError
from service.intake.limits import no_space

_FOLDER = "uploads"


@contextmanager
def upload_folder(scratch: Path) -> Iterator[Path]:
    """An empty private folder, removed with all it holds when the block ends; errors of the disk are ours."""
    parent = scratch / _FOLDER
    with disk_errors():
        parent.mkdir(parents=True, exist_ok=True)
        with folders.owned(Path(tempfile.mkdtemp(dir=parent))) as folder:
            yield folder


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the system's error for a full disk into `InsufficientStorage`, that for a broken one into `DiskFailed`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space() from error
        if error.errno == errno.EIO:
            raise DiskFailed("The service's disk failed; nothing was kept, send it again.") from error
        raise


class DiskFailed(InternalError):
    """The disk could not read or write; what it was to keep is not to be relied on."""

    code = "STORAGE_ERROR"


def sweep(scratch: Path) -> int:
    """Remove the folders of uploads whose process has gone; returns how many."""
    return folders.sweep(scratch / _FOLDER)
