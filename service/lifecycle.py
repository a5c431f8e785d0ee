"""What a client asks of a job that is there: to pause, to go on, to be tried again. Cancelling is in `service.jobs`.

Asking for what has been asked before changes nothing; from a state that it does not fit, each raises `Conflict` with
the job's status.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from service.errors import Conflict
from service.events import emit
from service.jobs import NO_PROGRESS, change
from service.tables import Event, Job

Start: TypeAlias = Literal["checkpoint", "start"]
"""Where a job that is tried again begins; without a checkpoint both are the same."""


class Retry(BaseModel):
    """How a job is tried again."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    start: Start = Field("checkpoint", alias="from", description="start: what was saved of it is dropped")


class SpecPatch(BaseModel):
    """A JSON merge patch (RFC 7396): fields of a spec that change, null for the default."""

    model_config = ConfigDict(extra="allow")


def pause(session: Session, job: Job) -> bool:
    """Pause a queued job at once; ask the worker of a running one to save what it has and leave it.

    False where that was asked for before.
    """
    if paused := change(session, and_(Job.id == job.id, Job.status == "queued"), status="paused", not_before=None):
        emit(session, job.id, "job.paused", "Paused before it started.")
    elif asked := change(session, and_(Job.id == job.id, Job.status == "running"), status="pausing"):
        emit(session, job.id, "job.pausing", "Asked to save and to pause.")
    session.refresh(job)
    if job.status not in ("pausing", "paused"):
        raise _conflict(job, "JOB_NOT_RUNNING", "only one that is queued or running can be paused")
    return paused or asked


def resume(session: Session, job: Job) -> bool:
    """Queue a paused job again, to go on from its checkpoint. Whether it was paused."""
    won = change(session, and_(Job.id == job.id, Job.status == "paused"), status="queued", not_before=None)
    if won:
        emit(session, job.id, "job.resumed", "Queued again to go on.")
    session.refresh(job)
    if not won and not _goes_on(session, job, "job.resumed"):
        raise _conflict(job, "JOB_NOT_PAUSED", "only a paused one can go on")
    return won


def retry(session: Session, job: Job, start: Start = "checkpoint") -> bool:
    """Queue a failed or cancelled job again; whether it had ended. Attempts are counted anew, their history stays."""
    anew = {"checkpoint": None, "batch_divisor": 1} if start == "start" else {}
    won = change(
        session,
        and_(Job.id == job.id, Job.status.in_(("failed", "cancelled"))),
        status="queued",
        attempts=0,
        progress=NO_PROGRESS,
        warnings=[],
        error=None,
        worker=None,
        not_before=None,
        finished_at=None,
        expires_at=None,
        expired_at=None,
        **anew,
    )
    if won:
        emit(session, job.id, "job.retried", "Queued again after its end.", data={"from": start})
    session.refresh(job)
    if not won and not _goes_on(session, job, "job.retried"):
        raise _conflict(job, "JOB_NOT_FAILED", "only one that failed or was cancelled can be tried again")
    return won


def _goes_on(session: Session, job: Job, event: str) -> bool:
    """Whether the job is on its way because of such an event."""
    asked = select(Event.id).where(Event.job_id == job.id, Event.type == event).limit(1)
    return job.status in ("queued", "running") and session.scalar(asked) is not None


def _conflict(job: Job, code: str, detail: str) -> Conflict:
    return Conflict(f"The job is {job.status}; {detail}.", code=code, extra={"job_status": job.status})
