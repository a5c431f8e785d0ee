"""Folders that belong to one process: locked while it lives, removed when it is done, swept when it was killed.

Pids repeat across containers, so a sweeper can only tell the living by their locks.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """Hold an existing folder for the length of the block, then remove it with all it holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(parent: Path) -> int:
    """Remove the folders below `parent` whose owner has gone; returns how many."""
    removed = 0
    for folder in sorted(path for path in parent.glob("*") if path.is_dir()):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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
