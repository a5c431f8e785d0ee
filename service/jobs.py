"""The state machine of a job. The table is the truth; the queue only rings.

Every change of status is one function here: an UPDATE that names the status, and for workers the fencing token, that
it expects, and says whether it won. Lease times come from the database's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from service.db import db_epoch, rows_changed
from service.errors import Conflict
from service.events import emit
from service.ids import new_id
from service.states import FINAL, Kind
from service.tables import Artifact, Attempt, Job, Model, utc_now
from service.webhooks import outbox

NO_PROGRESS: dict[str, Any] = {"fraction": 0.0, "step": 0, "total_steps": None, "seconds_remaining": None}
CRASH_LOOP: dict[str, Any] = {
    "code": "CRASH_LOOP",
    "message": "The job ended its worker's engine at every attempt; it is not tried again.",
    "blame": "service",
    "retryable": False,
}


@dataclass(frozen=True)
class Claim:
    """What a worker holds: the right to write to one job while its token is the latest."""

    job_id: str
    token: int
    tenant: str
    attempt: int


def submit(session: Session, job: Job) -> Job:
    """Store a new job as `queued`."""
    session.add(job)
    session.flush()
    if job.webhook_url is not None:  # so that its secret can be asked for before the first webhook comes
        outbox.signer_of_jobs(session, job.tenant)
    emit(session, job.id, "job.queued", "Queued.")
    return job


def _change(session: Session, where: ColumnElement[bool], **values: Any) -> bool:
    return rows_changed(session, update(Job).where(where).values(version=Job.version + 1, **values)) == 1


def _held(claim: Claim, *statuses: str) -> ColumnElement[bool]:
    return and_(Job.id == claim.job_id, Job.token == claim.token, Job.status.in_(statuses))


def claim(session: Session, job_id: str, worker: str, lease_seconds: float) -> Claim | None:
    """Take a queued job: counts the attempt before it starts. None if another was first, or it is not due."""
    due = or_(Job.not_before.is_(None), Job.not_before <= db_epoch())
    won = _change(
        session,
        and_(Job.id == job_id, Job.status == "queued", due),
        status="running",
        phase="loading",
        progress=NO_PROGRESS,
        warnings=[],
        token=Job.token + 1,
        attempts=Job.attempts + 1,
        worker=worker,
        lease_until=db_epoch() + lease_seconds,
        started_at=utc_now(),
    )
    if not won:
        return None
    job = session.execute(select(Job).where(Job.id == job_id).execution_options(populate_existing=True)).scalar_one()
    session.add(Attempt(job_id=job_id, token=job.token, worker=worker))
    emit(session, job_id, "job.started", f"Attempt {job.attempts} started.", data={"attempt": job.attempts})
    return Claim(job_id, job.token, job.tenant, job.attempts)


def beat(session: Session, held: Claim, lease_seconds: float, **visible: Any) -> str | None:
    """Renew the lease and store what changed (`phase`, `progress`, `warnings`).

    Returns the job's status, `running` or `cancelling`; None when the job is no longer this worker's.
    """
    lease = {"lease_until": db_epoch() + lease_seconds}
    if visible:
        won = _change(session, _held(held, "running", "cancelling"), **lease, **visible)
    else:
        won = rows_changed(session, update(Job).where(_held(held, "running", "cancelling")).values(**lease)) == 1
    if not won:
        return None
    return session.execute(select(Job.status).where(Job.id == held.job_id)).scalar_one()


def finish(
    session: Session,
    held: Claim,
    status: str,
    result: dict[str, Any],
    model: Model | None,
    artifacts: list[Artifact],
) -> bool:
    """End a running job as `succeeded` or `rejected` with its result, model and artifacts, all or nothing.

    False when the job was cancelled meanwhile or belongs to another worker: then nothing was stored.
    """
    won = _change(
        session,
        _held(held, "running"),
        status=status,
        phase=None,
        progress={**NO_PROGRESS, "fraction": 1.0, "seconds_remaining": 0},
        result=result,
        lease_until=None,
        finished_at=utc_now(),
    )
    if won:
        if model is not None:
            session.add(model)
        session.add_all(artifacts)
        _end_attempt(session, held.job_id, held.token, status)
        emit(
            session,
            held.job_id,
            f"job.{status}",
            f"The job {status}." if status == "succeeded" else "Goals missed.",
        )
    return won


def fail(session: Session, held: Claim, error: dict[str, Any], max_attempts: int) -> bool:
    """End a running job as failed, or queue it again while its error is retryable and attempts are left.

    True when it was queued again.
    """
    if error["retryable"] and held.attempt < max_attempts:
        return _requeue(
            session, _held(held, "running"), held.job_id, held.token, error["code"], delay=2.0**held.attempt
        )
    if error["retryable"]:
        error = {**CRASH_LOOP, "message": f"{CRASH_LOOP['message']} Last: {error['message']}"}
    if _change(session, _held(held, "running"), **_ending("failed", error)):
        _end_attempt(session, held.job_id, held.token, "failed")
        emit(session, held.job_id, "job.failed", error["message"], level="error", data={"code": error["code"]})
    else:
        confirm_cancelled(session, held)
    return False


def _ending(status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"status": status, "phase": None, "error": error, "lease_until": None, "finished_at": utc_now()}


def confirm_cancelled(session: Session, held: Claim) -> bool:
    """The worker has stopped the engine of a job that was `cancelling`."""
    won = _change(session, _held(held, "cancelling"), **_ending("cancelled"))
    if won:
        _end_attempt(session, held.job_id, held.token, "cancelled")
        emit(session, held.job_id, "job.cancelled", "Cancelled.")
    return won


def give_back(session: Session, held: Claim) -> bool:
    """Queue a job again because its worker is shutting down; the attempt does not count."""
    return _requeue(session, _held(held, "running"), held.job_id, held.token, "returned", attempts=Job.attempts - 1)


def _requeue(
    session: Session,
    where: ColumnElement[bool],
    job_id: str,
    token: int,
    outcome: str,
    delay: float = 0.0,
    **values: Any,
) -> bool:
    won = _change(
        session,
        where,
        status="queued",
        phase=None,
        progress=NO_PROGRESS,
        lease_until=None,
        worker=None,
        not_before=db_epoch() + delay if delay else None,
        **values,
    )
    if won:
        _end_attempt(session, job_id, token, outcome)
        emit(
            session,
            job_id,
            "job.requeued",
            f"Queued again: {outcome}.",
            level="warning",
            data={"outcome": outcome},
        )
    return won


def _end_attempt(session: Session, job_id: str, token: int, outcome: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.token == token)
        .values(finished_at=utc_now(), outcome=outcome.lower())
    )


def cancel(session: Session, job: Job) -> None:
    """Cancel a queued job at once, ask a running one to stop; repeating it changes nothing.

    Raises `Conflict` when the job has ended in another way.
    """
    if _change(session, and_(Job.id == job.id, Job.status == "queued"), **_ending("cancelled")):
        emit(session, job.id, "job.cancelled", "Cancelled before it started.")
    elif _change(session, and_(Job.id == job.id, Job.status == "running"), status="cancelling"):
        emit(session, job.id, "job.cancelling", "Asked to stop.")
    session.refresh(job)
    if job.status not in ("cancelling", "cancelled"):
        raise Conflict(f"The job has already {job.status}.", code="JOB_FINISHED", extra={"job_status": job.status})


def reconcile(session: Session, max_attempts: int) -> list[str]:
    """Free jobs whose worker has gone: queue them again, end the cancelled and the hopeless ones.

    Returns the ids of queued jobs that are due, for the caller to ring where the broker no longer knows of them.
    """
    expired = select(Job).where(Job.status.in_(("running", "cancelling")), Job.lease_until < db_epoch())
    for job in session.scalars(expired.execution_options(populate_existing=True)):
        still = and_(Job.id == job.id, Job.token == job.token, Job.status == job.status, Job.lease_until < db_epoch())
        _free(session, job, still, max_attempts)
    due = or_(Job.not_before.is_(None), Job.not_before <= db_epoch())
    queued = select(Job.id).where(Job.status == "queued", due).order_by(Job.priority.desc(), Job.id)
    return list(session.scalars(queued))


def _free(session: Session, job: Job, still: ColumnElement[bool], max_attempts: int) -> None:
    if job.status == "cancelling":
        if _change(session, still, **_ending("cancelled")):
            _end_attempt(session, job.id, job.token, "cancelled")
            emit(session, job.id, "job.cancelled", "Cancelled; its worker had gone.")
    elif job.attempts < max_attempts:
        _requeue(session, still, job.id, job.token, "worker_lost")
    elif _change(session, still, **_ending("failed", CRASH_LOOP)):
        _end_attempt(session, job.id, job.token, "worker_lost")
        emit(session, job.id, "job.failed", CRASH_LOOP["message"], level="error", data={"code": "CRASH_LOOP"})


def new_job(
    tenant: str,
    spec: dict[str, Any],
    configuration: dict[str, Any],
    advice: Sequence[dict[str, str]] = (),
    kind: Kind = "compression",
) -> Job:
    """A row for a validated spec, not yet stored.

    `webhook_url` becomes a column: the rest of the configuration goes to the engine and into reports, which are passed
    on, and the URL may hold a secret.
    """
    return Job(
        id=new_id("job"),
        tenant=tenant,
        kind=kind,
        name=configuration["name"],
        metadata_=configuration["metadata"],
        model_id=configuration["model_id"],
        dataset_id=configuration["dataset_id"],
        spec=spec,
        configuration={name: value for name, value in configuration.items() if name != "webhook_url"},
        webhook_url=configuration.get("webhook_url"),
        priority=configuration["priority"],
        status="queued",
        progress=NO_PROGRESS,
        warnings=[],
        advice=list(advice),
    )


def is_final(status: str) -> bool:
    """Whether a job in this status can change no more."""
    return status in FINAL
