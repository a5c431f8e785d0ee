"""Bytes whose row was never committed, or went while they could not be deleted: removed at the next start."""

import logging
import time
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.ids import made_at
from service.storage import Storage
from service.tables import Dataset, Model

log = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0
"""Younger bytes may belong to an upload that is about to commit."""


def sweep(database: Database, storage: Storage, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Delete the orphans that are old enough; returns their prefixes. A database that is away only delays it."""
    removed = []
    try:
        for kind, table in (("models", Model), ("datasets", Dataset)):
            for id_, _ in groupby(storage.list(kind), key=lambda key: key.split("/")[1]):
                if is_old(id_, grace_seconds) and not _is_known(database, table, id_):
                    storage.delete_prefix(f"{kind}/{id_}")
                    removed.append(f"{kind}/{id_}")
    except SQLAlchemyError:
        log.warning("The database is away; orphaned bytes are looked for at the next start")
    return removed


def is_old(id_: str, grace_seconds: float) -> bool:
    """Whether an id of ours was made longer ago than that."""
    try:
        return made_at(id_) < time.time() - grace_seconds
    except ValueError:  # not of our making: not ours to delete
        return False


def _is_known(database: Database, table: type[Model] | type[Dataset], id_: str) -> bool:
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(table.id).where(table.id == id_, table.deleted_at.is_(None))) is not None
