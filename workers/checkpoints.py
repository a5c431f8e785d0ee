"""Checkpoints: what an engine saves goes into storage and into the job's row, and back at the next attempt.

A checkpoint is noted when all of its files are stored, together with the one before it, and only then is the one before
that removed: whatever dies in between, one that is whole can be gone on from, and another where that is damaged since.
"""

import logging
import queue
import re
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.checkpoints import key_of, newest_first
from service.jobs import Claim
from service.storage import Storage, StorageMissing
from workers.lease import Halt
from workers.publishing import sha256_of
from workers.relay import CheckpointLine
from workers.staging import Order, Unreadable, copy

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
STORING = "storing"
STAGED = "in/checkpoint"
MANIFEST = "checkpoint.json"
MAX_FILES = 100
_BYTES_PER_PARAMETER = 64
_BYTES_BESIDE = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class _Unusable(Exception):
    """What the engine left is no checkpoint."""


class _Abandoned(Exception):
    """Nobody will go on from it."""


class Keeper:
    """Stores the checkpoints that an engine reports, in a thread of its own: the engine trains on meanwhile.

    When the block ends, what was reported last is stored first, unless the job is cancelled or another worker's.
    """

    def __init__(
        self, storage: Storage, folder: Path, held: Claim, order: Order, note: Callable[[dict[str, Any]], bool]
    ) -> None:
        """`note` writes the job's row; False when the job is no longer this worker's."""
        self._storage, self._folder, self._held, self._note = storage, folder / FOLDER, held, note
        self._bound = order.model["parameters"] * _BYTES_PER_PARAMETER + _BYTES_BESIDE
        self._kept = order.checkpoint
        self._offered: CheckpointLine | None = None
        self._lines: queue.SimpleQueue[CheckpointLine | None] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Halt) and error.reason in ("lost", "cancelling"):
            self._abandoned.set()
        self._lines.put(None)
        self._thread.join()

    def offer(self, line: CheckpointLine | None) -> None:
        """Take what the engine reported last; the same again changes nothing."""
        if line is not None and line is not self._offered:
            self._offered = line
            self._lines.put(line)

    def _run(self) -> None:
        going_on = True
        while going_on:
            lines = [self._lines.get()]
            with suppress(queue.Empty):
                while True:
                    lines.append(self._lines.get_nowait())
            going_on = None not in lines
            reported = [line for line in lines if line is not None]
            if reported:  # those before the last are not worth their way
                self._keep(reported[-1])

    def _keep(self, line: CheckpointLine) -> None:
        key = key_of(self._held.job_id, self._held.token, line.name)
        if any(kept["key"] == key for kept in newest_first(self._kept)):
            return
        try:
            # The engine removes its older ones, however long storing takes: this one is out of its reach.
            taken = (self._folder / line.name).rename(self._folder / STORING)
            files = self._put(key, taken)
        except Exception as fault:
            if not isinstance(fault, _Abandoned):
                log.exception("Checkpoint %s of job %s was not stored", line.name, self._held.job_id)
            self._forget(key)
        else:
            self._replace({"key": key, "files": files, "step": line.step, "token": self._held.token})
        shutil.rmtree(self._folder / STORING, ignore_errors=True)

    def _replace(self, checkpoint: dict[str, Any]) -> None:
        """Note a stored checkpoint, and let go of all but the one before it."""
        before, older = newest_first(self._kept)[:1], newest_first(self._kept)[1:]
        checkpoint["before"] = before[0] | {"before": None} if before else None
        try:
            noted = self._note(checkpoint)
        except Exception:  # it may have been noted all the same: what is not is found by the sweep
            log.exception("Whether a checkpoint of job %s was noted is unknown", self._held.job_id)
            return
        if noted:
            self._kept = checkpoint
        for needless in older if noted else [checkpoint]:
            self._forget(needless["key"])

    def _put(self, key: str, folder: Path) -> list[dict[str, Any]]:
        files = []
        for path in self._plain_files(folder):
            size, digest = path.stat().st_size, sha256_of(path, self._check)
            self._storage.put(f"{key}/{path.name}", path)
            files.append({"path": path.name, "size": size, "sha256": digest})
            self._check()
        return files

    def _plain_files(self, folder: Path) -> list[Path]:
        if folder.is_symlink() or self._folder.is_symlink():
            raise _Unusable("its folder is a link")
        paths = sorted(folder.iterdir())
        states = [path.lstat() for path in paths]
        plain = all(
            stat.S_ISREG(state.st_mode) and _NAME.fullmatch(path.name)
            for path, state in zip(paths, states, strict=True)
        )
        if not plain or len(paths) > MAX_FILES or MANIFEST not in {path.name for path in paths}:
            raise _Unusable("it holds something else than plain files, or lacks its manifest")
        if sum(state.st_size for state in states) > self._bound:
            raise _Unusable("it is larger than anything that such a model needs")
        return paths

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned

    def _forget(self, key: str) -> None:
        try:
            self._storage.delete_prefix(key)
        except Exception:
            log.exception("A checkpoint of job %s is left in storage", self._held.job_id)


def bring_back(
    storage: Storage, folder: Path, checkpoint: dict[str, Any] | None, check: Callable[[], None]
) -> dict[str, Any] | None:
    """Copy the newest noted checkpoint that is whole to `folder/in/checkpoint`; returns it, None when there is none."""
    whole = (saved for saved in newest_first(checkpoint) if _copied(storage, folder, saved, check))
    return next(whole, None)


def _copied(storage: Storage, folder: Path, checkpoint: dict[str, Any], check: Callable[[], None]) -> bool:
    """False, and nothing there, when a file is missing, cannot be read or has changed."""
    target = folder / STAGED
    target.mkdir()
    try:
        for file in checkpoint["files"]:
            if copy(storage, f"{checkpoint['key']}/{file['path']}", target / file["path"], check) != file["sha256"]:
                raise _Unusable(file["path"])
    except (StorageMissing, Unreadable, _Unusable) as fault:
        log.error("The checkpoint %s cannot be used: %s", checkpoint["key"], type(fault).__name__)
        shutil.rmtree(target)
        return False
    return True
