"""Folders of uploads under way: gone when the upload ends, swept at the next start when the process was killed."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.intake.limits import no_space

_FOLDER = "uploads"


@contextmanager
def upload_folder(scratch: Path) -> Iterator[Path]:
    """An empty private folder, removed with all it holds when the block ends; a full disk is `InsufficientStorage`.

    It is locked meanwhile: pids repeat across containers, so a sweeper can only tell the living by their locks.
    """
    parent = scratch / _FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space() from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(scratch: Path) -> int:
    """Remove the folders of uploads whose process has gone; returns how many."""
    removed = 0
    parent = scratch / _FOLDER
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        finally:
            os.close(descriptor)
    return removed
