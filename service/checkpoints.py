"""Checkpoints in storage: below `checkpoints/<job>/<token>/<name>/`, at most two of them noted in the job's row.

The second is the one before the newest: it serves where that turns out to be damaged.
"""

from typing import Any

from service.db import Database
from service.intake.orphans import GRACE_SECONDS, is_old, remove_orphans
from service.states import HELD
from service.storage import Storage
from service.tables import Job

_ROOT = "checkpoints"


def prefix_of(job_id: str) -> str:
    """Where all checkpoints of a job lie."""
    return f"{_ROOT}/{job_id}"


def key_of(job_id: str, token: int, name: str) -> str:
    """Where one checkpoint lies: the fencing token keeps attempts apart."""
    return f"{prefix_of(job_id)}/{token}/{name}"


def newest_first(checkpoint: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The checkpoints that `Job.checkpoint` notes."""
    found = []
    while checkpoint is not None:
        found.append(checkpoint)
        checkpoint = checkpoint.get("before")
    return found


def sweep(database: Database, storage: Storage, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Delete checkpoints that no job goes on from; returns their prefixes."""
    gone = remove_orphans(storage, _ROOT, 2, lambda prefix: _is_gone(database, prefix, grace_seconds))
    return gone + remove_orphans(storage, _ROOT, 4, lambda prefix: _is_orphan(database, prefix, grace_seconds))


def _is_gone(database: Database, prefix: str, grace_seconds: float) -> bool:
    """Whether a folder is of a job that is no more."""
    job_id = prefix.rpartition("/")[2]
    with database.session_scope(read_only=True) as session:
        return session.get(Job, job_id) is None and is_old(job_id, grace_seconds)


def _is_orphan(database: Database, prefix: str, grace_seconds: float) -> bool:
    _, job_id, token, *_ = (*prefix.split("/"), "")
    with database.session_scope(read_only=True) as session:
        job = session.get(Job, job_id)
    if job is None:
        return False
    if any(noted["key"] == prefix for noted in newest_first(job.checkpoint)):
        return False
    return job.status not in HELD or token != str(job.token)  # the newest attempt may be about to note it
