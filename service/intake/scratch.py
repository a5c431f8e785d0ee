"""Folders of uploads under way: gone when the upload ends, swept at the next start when the process was killed."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import folders
from service.intake.limits import no_space

_FOLDER = "uploads"


@contextmanager
def upload_folder(scratch: Path) -> Iterator[Path]:
    """An empty private folder, removed with all it holds when the block ends; a full disk is `InsufficientStorage`."""
    parent = scratch / _FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_no_space(), folders.owned(Path(tempfile.mkdtemp(dir=parent))) as folder:
        yield folder


@contextmanager
def full_disk_is_no_space() -> Iterator[None]:
    """Turn the system's error for a full disk into `InsufficientStorage`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space() from error
        raise


def sweep(scratch: Path) -> int:
    """Remove the folders of uploads whose process has gone; returns how many."""
    return folders.sweep(scratch / _FOLDER)
