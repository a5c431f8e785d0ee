"""Checkpoints in storage: below `checkpoints/<job>/<token>/<name>/`, at most one of them noted in the job's row."""

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


def sweep(database: Database, storage: Storage, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Delete checkpoints that no job goes on from; returns their prefixes."""
    return remove_orphans(storage, _ROOT, 4, lambda prefix: _is_orphan(database, prefix, grace_seconds))


def _is_orphan(database: Database, prefix: str, grace_seconds: float) -> bool:
    _, job_id, token, *_ = (*prefix.split("/"), "")
    with database.session_scope(read_only=True) as session:
        job = session.get(Job, job_id)
    if job is None:
        return is_old(job_id, grace_seconds)
    if job.checkpoint is not None and job.checkpoint["key"] == prefix:
        return False
    return job.status not in HELD or token != str(job.token)  # the newest attempt may be about to note it
