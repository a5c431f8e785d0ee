"""Stored files are read now and then and compared with their digests, so that damage is known before they are needed.

One process at a time does it: it holds a lock on a file in scratch, which tells how far the reading has come.
"""

import errno
import fcntl
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Select, select
from sqlalchemy.exc import SQLAlchemyError

from service.config import Settings
from service.db import Database
from service.errors import Unavailable
from service.storage import StorageMissing, open_storage
from service.tables import Artifact, Dataset, Job, Model

log = logging.getLogger(__name__)

PAUSE_SECONDS = 24 * 3600.0
"""Between the end of one reading of everything and the next."""

_IDLE_SECONDS = 60.0
_PIECE = 1 << 20
_LEAST = 64 << 10
"""A smaller file counts as this much, for opening one takes time, too."""
_AT_ONCE = 100

_BEGINNING = '["models", "", 0]'

_ROWS: dict[str, tuple[type[Model | Dataset | Artifact], Select[Any]]] = {
    # What a job made is stored as its artifacts alone.
    "models": (Model, select(Model).where(Model.state == "ready", Model.job_id.is_(None), Model.deleted_at.is_(None))),
    "datasets": (Dataset, select(Dataset).where(Dataset.deleted_at.is_(None))),
    "artifacts": (Artifact, select(Artifact).join(Job, Job.id == Artifact.job_id).where(Job.expired_at.is_(None))),
}
"""What promises files, in the order in which it is gone through."""


class Scrubber:
    """One daemon thread of the API process, which reads no faster than the settings' `scrub_rate`."""

    def __init__(self, settings: Settings, database: Database, damaged: Callable[[], None]) -> None:
        """`damaged` is called for every file that is lost or has changed."""
        self._database, self._storage, self._damaged = database, open_storage(settings.storage), damaged
        self._file, self._rate = settings.scratch / "scrub.json", settings.scrub_rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrubber", daemon=True)

    def start(self) -> None:
        """Begin, where there is a rate at all."""
        if self._rate:
            self._thread.start()

    def stop(self) -> None:
        """End, after the piece that is being read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(_IDLE_SECONDS):
            try:
                self.turn()
            except (SQLAlchemyError, Unavailable) as fault:
                log.warning("Stored files cannot be read through now: %s", type(fault).__name__)
            except Exception:
                log.exception("Stored files cannot be read through now")

    def turn(self) -> None:
        """Read on from where the last turn stopped, to the end, unless that is another's work or was just reached.

        A file that is damaged is told again at every reading.
        """
        with _alone(self._file) as note:
            if note is None:
                return
            kind, after, ended = json.loads(note.read() or _BEGINNING)
            if time.time() - ended < PAUSE_SECONDS:
                return
            for name in list(_ROWS)[list(_ROWS).index(kind) :]:
                if not self._read_through(name, after if name == kind else "", note):
                    return
            _write(note, "models", "", time.time())

    def _read_through(self, kind: str, after: str, note: TextIO) -> bool:
        table, promising = _ROWS[kind]
        while True:
            with self._database.session_scope(read_only=True) as session:
                rows = list(session.scalars(promising.where(table.id > after).order_by(table.id).limit(_AT_ONCE)))
            for row in rows:
                for key, sha256 in _files(row):
                    self._check(kind, row.id, key, sha256)
                if self._stop.is_set():
                    return False
                after = row.id
                _write(note, kind, after)
            if len(rows) < _AT_ONCE:
                return True

    def _check(self, kind: str, owner: str, key: str, sha256: str) -> None:
        fault = self._fault_of(key, sha256)
        if fault is None or self._stop.is_set():
            return
        table, promising = _ROWS[kind]
        with self._database.session_scope(read_only=True) as session:
            if session.scalar(promising.where(table.id == owner)) is None:  # deleted meanwhile
                return
        self._damaged()
        log.error("The stored file %s %s; its SHA-256 was %s", key, fault, sha256)

    def _fault_of(self, key: str, sha256: str) -> str | None:
        digest = hashlib.sha256()
        try:
            with self._storage.open(key) as file:
                while (piece := file.read(_PIECE)) and not self._stop.wait(max(len(piece), _LEAST) / self._rate):
                    digest.update(piece)
        except StorageMissing:
            return "is lost"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return "cannot be read"
        return None if digest.hexdigest() == sha256 else "has changed"


def _files(row: Model | Dataset | Artifact) -> list[tuple[str, str]]:
    """Keys and digests of what a row promises."""
    if isinstance(row, Artifact):
        return [(row.key, row.sha256)]
    if isinstance(row, Model):
        return [(f"{row.prefix}/{file['path']}", file["sha256"]) for file in row.files]
    return [(f"{row.prefix}/{split}.jsonl", facts["sha256"]) for split, facts in row.splits.items()]


@contextmanager
def _alone(path: Path) -> Iterator[TextIO | None]:
    """The note, for whoever is the only one that has it; None while another process does."""
    path.touch()
    with path.open("r+") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield note


def _write(note: TextIO, kind: str, after: str, ended: float = 0.0) -> None:
    """Note the last row that was read, or when everything had been."""
    note.seek(0)
    note.truncate()
    json.dump([kind, after, ended], note)
    note.flush()
