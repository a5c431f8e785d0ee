"""Bytes whose row was never committed, or went while they could not be deleted: removed by the reconciler."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.errors import Unavailable
from service.ids import made_at
from service.states import FINAL
from service.storage import Storage
from service.tables import Artifact, Dataset, Job, Model, utc_now

log = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0
"""Younger bytes may belong to an upload that is about to commit."""


def sweep(database: Database, storage: Storage, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Delete models and data sets without a row that are old enough; returns their prefixes."""

    def remove(kind: str, table: type[Model] | type[Dataset]) -> list[str]:
        def is_orphan(prefix: str) -> bool:
            id_ = prefix.split("/")[1]
            return is_old(id_, grace_seconds) and not _is_known(database, table, id_)

        return remove_orphans(storage, kind, 2, is_orphan)

    return remove("models", Model) + remove("datasets", Dataset)


def sweep_artifacts(database: Database, storage: Storage, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Delete what attempts left that no row owns: of jobs that are gone, have expired, or ended a while ago.

    Returns the prefixes.
    """
    return remove_orphans(storage, "artifacts", 3, lambda prefix: _is_left(database, prefix, grace_seconds))


def remove_orphans(storage: Storage, root: str, parts: int, is_orphan: Callable[[str], bool]) -> list[str]:
    """Delete the prefixes of so many parts below `root` that are orphans, and return them.

    A database or a storage that is away only delays it.
    """
    removed = []
    try:
        for prefix in storage.prefixes(root, parts):
            if is_orphan(prefix):
                storage.delete_prefix(prefix)
                removed.append(prefix)
    except (SQLAlchemyError, Unavailable):
        log.warning("The database or the storage is away; orphans below %s are looked for later", root)
    return removed


def _is_left(database: Database, prefix: str, grace_seconds: float) -> bool:
    job_id = prefix.split("/")[1]
    owner = select(Artifact.id).where(Artifact.job_id == job_id, Artifact.key.startswith(f"{prefix}/", autoescape=True))
    with database.session_scope(read_only=True) as session:
        job = session.get(Job, job_id)
        if job is None:
            return is_old(job_id, grace_seconds)
        # Of an unfinished job an attempt may run; one that has just ended may be about to tidy up.
        if job.status not in FINAL or job.finished_at is None:
            return False
        if job.finished_at > utc_now() - timedelta(seconds=grace_seconds):
            return False
        return job.expired_at is not None or session.scalar(owner.limit(1)) is None


def is_old(id_: str, grace_seconds: float) -> bool:
    """Whether an id of ours was made longer ago than that."""
    try:
        return made_at(id_) < time.time() - grace_seconds
    except ValueError:  # not of our making: not ours to delete
        return False


def _is_known(database: Database, table: type[Model] | type[Dataset], id_: str) -> bool:
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(table.id).where(table.id == id_, table.deleted_at.is_(None))) is not None
