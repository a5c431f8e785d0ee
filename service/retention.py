"""What becomes of a job whose time is over: the bytes of what it made go, every row stays and tells of it."""

import logging
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session, aliased

from service.checkpoints import prefix_of
from service.db import Database, on_commit
from service.errors import Gone, SecateurError
from service.events import emit
from service.jobs import change
from service.states import FINAL
from service.storage import Storage
from service.tables import Job, Model, utc_now

log = logging.getLogger(__name__)

AT_ONCE = 100
"""Jobs of one turn: what is left comes with the next."""

_OTHER = aliased(Job)


def expire(database: Database, storage: Storage) -> list[str]:
    """End the keeping of what jobs made whose time is over; returns their ids.

    A job whose model another job still needs waits until that one has ended.
    """
    needed = (
        select(_OTHER.id)
        .join(Model, Model.id == _OTHER.model_id)
        .where(Model.job_id == Job.id, _OTHER.status.not_in(FINAL))
    )
    due = select(Job.id).where(_is_due(), ~needed.exists()).order_by(Job.expires_at).limit(AT_ONCE)
    with database.session_scope(read_only=True) as session:
        found = list(session.scalars(due))
    return [job_id for job_id in found if _expire(database, storage, job_id)]


def drop_checkpoints(database: Database, storage: Storage, seconds: float) -> list[str]:
    """Remove what jobs had saved that failed so long ago; returns their ids. Tried again, they begin at the start."""
    old = and_(
        Job.status == "failed", Job.checkpoint.is_not(None), Job.finished_at < utc_now() - timedelta(seconds=seconds)
    )
    with database.session_scope(read_only=True) as session:
        found = list(session.scalars(select(Job.id).where(old).limit(AT_ONCE)))
    return [job_id for job_id in found if _drop_checkpoints(database, storage, and_(Job.id == job_id, old), job_id)]


def _drop_checkpoints(database: Database, storage: Storage, still: ColumnElement[bool], job_id: str) -> bool:
    with database.session_scope() as session:
        if not change(session, still, checkpoint=None):
            return False
        emit(session, job_id, "job.checkpoint_expired", "What the failed job had saved was removed.")
        on_commit(session, partial(_remove, storage, prefix_of(job_id)))
    return True


def _is_due() -> ColumnElement[bool]:
    return and_(Job.expires_at <= utc_now(), Job.expired_at.is_(None), Job.status.in_(FINAL))


def _expire(database: Database, storage: Storage, job_id: str) -> bool:
    """Rows first, bytes after the commit: those that a crash leaves in between are orphans."""
    with database.session_scope() as session:
        # Locked, so that a job that is being created for the model waits, or is waited for.
        made = session.scalar(select(Model).where(Model.job_id == job_id, Model.state == "ready").with_for_update())
        if made is not None and _is_needed(session, made.id):
            return False
        if not change(session, and_(Job.id == job_id, _is_due()), expired_at=utc_now(), checkpoint=None):
            return False
        if made is not None:
            made.state = "expired"
        emit(session, job_id, "job.expired", "The time to keep its files is over; they were removed.")
        on_commit(session, partial(_remove, storage, f"artifacts/{job_id}", prefix_of(job_id)))
    return True


def _is_needed(session: Session, model_id: str) -> bool:
    unfinished = select(Job.id).where(Job.model_id == model_id, Job.status.not_in(FINAL)).limit(1)
    return session.scalar(unfinished) is not None


def _remove(storage: Storage, *prefixes: str) -> None:
    try:
        for prefix in prefixes:
            storage.delete_prefix(prefix)
    except (OSError, SecateurError):
        log.exception("Files below %s are left for the sweep", " and ".join(prefixes))


def check_kept(job: Job | None) -> None:
    """Raises `Gone` when the files of a job are kept no more."""
    if job is None or job.expired_at is None:
        return
    when = job.expired_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    raise Gone(
        f"The files of this job were removed at {when}, as its expires_after had it; its figures and its model's are "
        "still here. Files of a job with a longer expires_after are kept longer, without one until they are deleted.",
        code="EXPIRED",
        extra={"expired_at": when},
    )
