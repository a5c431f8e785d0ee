"""What the service leans on, each with a word on what to do where it is missing."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from service.broker import Broker
from service.config import Settings
from service.db import Database
from service.errors import SecateurError
from service.ids import new_id
from service.migrate import is_behind
from service.storage import Storage
from service.tables import Worker
from service.worker_view import live_workers

DATABASE = "Check that the database runs and that SECATEUR_DATABASE_URL names it."
SCHEMA = "Run `secateur migrate`: the database is older than this release."
BROKER = "Check that Redis or Valkey runs and that SECATEUR_BROKER_URL names it; queued jobs wait."
STORAGE = "Check that SECATEUR_STORAGE_URL can be written to."
SPACE = "Free disk space or give the storage more: less is left than SECATEUR_DISK_RESERVE_BYTES."
WORKER = "Start one with `secateur worker`: none has told that it is alive."


@dataclass(frozen=True)
class State:
    """What was found: the live workers, and by name what to do about each thing, None where it is there."""

    workers: list[Worker]
    remedies: dict[str, str | None]

    @property
    def missing(self) -> dict[str, str]:
        """Names of what is not there, with what to do."""
        return {name: remedy for name, remedy in self.remedies.items() if remedy is not None}


def look(settings: Settings, database: Database, broker: Broker, storage: Storage) -> State:
    """Try everything once."""
    workers, behind, reached = _ask(database)
    remedies = {
        "database": None if reached else DATABASE,
        "schema": SCHEMA if behind else None,
        "broker": None if broker.ping() else BROKER,
        "storage": _storage(storage, settings),
        "worker": None if workers else WORKER,
    }
    return State(workers, remedies)


def _ask(database: Database) -> tuple[list[Worker], bool, bool]:
    """Live workers, whether migrations are missing, and whether the database answered."""
    behind = False
    try:
        with database.session_scope(read_only=True) as session:
            behind = is_behind(session.connection())
            return ([] if behind else live_workers(session)), behind, True
    except SQLAlchemyError:
        return [], behind, False


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
