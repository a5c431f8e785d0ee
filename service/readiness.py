"""What the service leans on, each with a word on what to do where it is missing."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service import clocks
from service.broker import Broker
from service.config import Settings
from service.db import Database
from service.errors import SecateurError
from service.ids import new_id
from service.migrate import is_ahead, is_behind
from service.storage import Storage
from service.tables import Worker
from service.worker_view import live_workers

DATABASE = "Check that the database runs and that SECATEUR_DATABASE_URL names it."
SCHEMA = "Run `secateur migrate`: the database is older than this release."
BROKER = "Check that Redis or Valkey runs and that SECATEUR_BROKER_URL names it; queued jobs wait."
STORAGE = "Check that SECATEUR_STORAGE_URL can be written to."
SPACE = "Free disk space or give the storage more: less is left than SECATEUR_DISK_RESERVE_BYTES."
WORKER = "Start one with `secateur worker`: none has told that it is alive."
AHEAD = "The database is newer than this release, which works with it all the same; update this process."


@dataclass(frozen=True)
class State:
    """What was found: the live workers, by name what to do about each thing, None where it is there, and warnings."""

    workers: list[Worker]
    remedies: dict[str, str | None]
    warnings: list[str]

    @property
    def missing(self) -> dict[str, str]:
        """Names of what is not there, with what to do."""
        return {name: remedy for name, remedy in self.remedies.items() if remedy is not None}


def look(settings: Settings, database: Database, broker: Broker, storage: Storage) -> State:
    """Try everything once."""
    asked = _ask(database)
    remedies = {
        "database": None if asked.reached else DATABASE,
        "schema": SCHEMA if asked.behind else None,
        "broker": None if broker.ping() else BROKER,
        "storage": _storage(storage, settings),
        "worker": None if asked.workers else WORKER,
    }
    return State(asked.workers, remedies, asked.warnings)


@dataclass
class _Asked:
    """What the database told."""

    reached: bool = False
    behind: bool = False
    workers: list[Worker] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _ask(database: Database) -> _Asked:
    asked = _Asked()
    with suppress(SQLAlchemyError), database.session_scope(read_only=True) as session:
        asked.behind = is_behind(session.connection())
        asked.reached = True
        if not asked.behind:
            asked.workers, asked.warnings = live_workers(session), _warnings(session)
    return asked


def _warnings(session: Session) -> list[str]:
    found = [clocks.fault_of(clocks.database_now(session)), AHEAD if is_ahead(session.connection()) else None]
    return [warning for warning in found if warning is not None]


def _storage(storage: Storage, settings: Settings) -> str | None:
    try:
        _write_probe(storage, settings)
        free = storage.free_bytes()
    except (OSError, SecateurError):
        return STORAGE
    return SPACE if free is not None and free < settings.disk_reserve_bytes else None


def _write_probe(storage: Storage, settings: Settings) -> None:
    key = f"probe/{new_id('prb')}"
    with tempfile.NamedTemporaryFile(dir=settings.scratch, delete=False) as probe:
        probe.write(b"probe")
    try:
        storage.put(f"{key}/file", Path(probe.name))
    finally:
        Path(probe.name).unlink(missing_ok=True)
        storage.delete_prefix(key)
