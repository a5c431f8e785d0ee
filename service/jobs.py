"""The state machine of a job. The table is the truth; the queue only rings.

Every change of status is one function here: an UPDATE that names the status, and for workers the fencing token, that
it expects, and says whether it won. Lease times come from the database's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from service import memory, turns
from service.db import db_epoch, rows_changed
from service.errors import Conflict
from service.events import emit
from service.ids import new_id
from service.states import FINAL, HELD, Kind
from service.tables import Artifact, Attempt, Job, Model, Worker, utc_now
from service.webhooks import outbox

NO_PROGRESS: dict[str, Any] = {"fraction": 0.0, "step": 0, "total_steps": None, "seconds_remaining": None}
CRASH_LOOP: dict[str, Any] = {
    "code": "CRASH_LOOP",
    "message": "The job ended its worker's engine at every attempt; it is not tried again.",
    "blame": "service",
    "retryable": False,
}
_NO_CRASH = frozenset({"NO_SPACE", "STORAGE_ERROR"})
"""Errors that end a job under their own name after the last attempt: no engine died of them."""
_TURNSTILE = 5_307_112
"""The advisory lock of PostgreSQL that claims pass one by one: so no two of them count the same running jobs."""


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
    emit(session, job.id, "job.queued", "Queued.", first=True)
    return job


def change(session: Session, where: ColumnElement[bool], **values: Any) -> bool:
    """Change one job visibly if it still is as `where` says; whether it was."""
    return rows_changed(session, update(Job).where(where).values(version=Job.version + 1, **values)) == 1


def _held(claim: Claim, *statuses: str) -> ColumnElement[bool]:
    return and_(Job.id == claim.job_id, Job.token == claim.token, Job.status.in_(statuses))


def claim_next(session: Session, worker: str, lease_seconds: float, running_limit: int | None = None) -> Claim | None:
    """Take the job whose turn it is (see `service.turns`), on to the next when another worker was first.

    None when there is nothing for this worker: `running_limit` bounds a tenant that has no limit of its own.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_TURNSTILE)))
    devices = session.scalar(select(Worker.devices).where(Worker.name == worker)) or []
    gpu = any(device["kind"] == "cuda" for device in devices)
    while (job_id := turns.first(session, gpu=gpu, running_limit=running_limit)) is not None:
        held = claim(session, job_id, worker, lease_seconds)
        if held is not None:
            return held
    return None


def claim(session: Session, job_id: str, worker: str, lease_seconds: float) -> Claim | None:
    """Take a queued job: counts the attempt before it starts. None if another was first, or it is not due."""
    due = or_(Job.not_before.is_(None), Job.not_before <= db_epoch())
    won = change(
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

    Returns the job's status, one of `HELD`; None when the job is no longer this worker's.
    """
    lease = {"lease_until": db_epoch() + lease_seconds}
    if visible:
        won = change(session, _held(held, *HELD), **lease, **visible)
    else:
        won = rows_changed(session, update(Job).where(_held(held, *HELD)).values(**lease)) == 1
    if not won:
        return None
    return session.execute(select(Job.status).where(Job.id == held.job_id)).scalar_one()


def keep_checkpoint(session: Session, held: Claim, checkpoint: dict[str, Any]) -> bool:
    """Note from where the next attempt goes on: `Job.checkpoint`, whose files are in storage."""
    return change(session, _held(held, "running", "pausing"), checkpoint=checkpoint)


def fall_back(session: Session, held: Claim, lost: dict[str, Any], checkpoint: dict[str, Any] | None) -> bool:
    """What was saved last cannot be read: note the checkpoint before it, or that there is none."""
    won = change(session, _held(held, "running", "pausing"), checkpoint=checkpoint)
    if won:
        begins = "starting anew" if checkpoint is None else f"going on from step {checkpoint['step']}"
        message = f"The checkpoint of step {lost['step']} cannot be read; {begins}."
        steps = {"step": lost["step"], "from_step": 0 if checkpoint is None else checkpoint["step"]}
        emit(session, held.job_id, "job.checkpoint_lost", message, level="warning", data=steps)
    return won


def finish(
    session: Session,
    held: Claim,
    status: str,
    result: dict[str, Any],
    model: Model | None,
    artifacts: list[Artifact],
) -> bool:
    """End a running job as `succeeded` or `rejected` with its result, model and artifacts, all or nothing.

    So ends one that was asked to pause, too, when it was through. False when the job was cancelled meanwhile or belongs
    to another worker: then nothing was stored.
    """
    done = {**NO_PROGRESS, "fraction": 1.0, "seconds_remaining": 0}
    ending = _ending(session, held.job_id, status)
    won = change(session, _held(held, "running", "pausing"), **ending, progress=done, result=result)
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
    """End a running job as failed, or queue it again while attempts are left: with smaller batches when memory ran out,
    as it was when its error is retryable.

    True when it was queued again.
    """
    out_of_memory = error["code"] in memory.CODES
    outcome = memory.OUTCOME if out_of_memory else error["code"]
    if held.attempt < max_attempts:
        if out_of_memory and _halve_batches(session, held):
            return _leave(session, held, outcome)
        if error["retryable"]:
            return _leave(session, held, outcome, delay=2.0**held.attempt)
    if error["retryable"] and not out_of_memory and error["code"] not in _NO_CRASH:
        error = {**CRASH_LOOP, "message": f"{CRASH_LOOP['message']} Last: {error['message']}"}
    if change(session, _held(held, "running", "pausing"), **_ending(session, held.job_id, "failed", error)):
        _end_attempt(session, held.job_id, held.token, outcome if out_of_memory else "failed")
        emit(session, held.job_id, "job.failed", error["message"], level="error", data={"code": error["code"]})
    else:
        confirm_cancelled(session, held)
    return False


def _halve_batches(session: Session, held: Claim) -> bool:
    smaller = memory.halved(session.get_one(Job, held.job_id, populate_existing=True))
    if smaller is None or not change(session, _held(held, "running", "pausing"), **smaller):
        return False
    divisor = {"batch_divisor": smaller["batch_divisor"]}
    emit(session, held.job_id, "job.batch_halved", smaller["advice"][-1]["message"], level="warning", data=divisor)
    return True


def _ending(session: Session, job_id: str, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an end writes; the checkpoint of a failed job stays, for it may be tried again."""
    finished = utc_now()
    kept = session.scalar(select(Job.configuration["expires_after"].as_integer()).where(Job.id == job_id))
    ending = {"status": status, "phase": None, "error": error, "lease_until": None, "finished_at": finished}
    ending["expires_at"] = None if kept is None else finished + timedelta(seconds=kept)
    return ending if status == "failed" else ending | {"checkpoint": None}


def confirm_cancelled(session: Session, held: Claim) -> bool:
    """The worker has stopped the engine of a job that was `cancelling`."""
    won = change(session, _held(held, "cancelling"), **_ending(session, held.job_id, "cancelled"))
    if won:
        _end_attempt(session, held.job_id, held.token, "cancelled")
        emit(session, held.job_id, "job.cancelled", "Cancelled.")
    return won


def confirm_paused(session: Session, held: Claim) -> bool:
    """The worker has stopped the engine of a job that was `pausing`; the attempt does not count."""
    where = _held(held, "pausing")
    return _set_aside(session, where, held.job_id, held.token, "paused", attempts=Job.attempts - 1)


def give_back(session: Session, held: Claim) -> bool:
    """Queue a job again because its worker is shutting down; the attempt does not count."""
    return _leave(session, held, "returned", attempts=Job.attempts - 1)


def _leave(session: Session, held: Claim, outcome: str, delay: float = 0.0, **values: Any) -> bool:
    """Queue a job again, or pause it where that was asked for. True when it was queued.

    Cancelled meanwhile, it ends so.
    """
    if _requeue(session, _held(held, "running"), held.job_id, held.token, outcome, delay, **values):
        return True
    if not _set_aside(session, _held(held, "pausing"), held.job_id, held.token, outcome, **values):
        confirm_cancelled(session, held)
    return False


def _requeue(
    session: Session,
    where: ColumnElement[bool],
    job_id: str,
    token: int,
    outcome: str,
    delay: float = 0.0,
    **values: Any,
) -> bool:
    not_before = db_epoch() + delay if delay else None
    left = {"status": "queued", "phase": None, "progress": NO_PROGRESS, "lease_until": None, "worker": None}
    won = change(session, where, **left, not_before=not_before, **values)
    if won:
        _end_attempt(session, job_id, token, outcome)
        message = f"Queued again: {outcome.lower()}."
        emit(session, job_id, "job.requeued", message, level="warning", data={"outcome": outcome})
    return won


def _set_aside(
    session: Session, where: ColumnElement[bool], job_id: str, token: int, outcome: str, **values: Any
) -> bool:
    won = change(session, where, status="paused", phase=None, lease_until=None, worker=None, **values)
    if won:
        _end_attempt(session, job_id, token, outcome)
        emit(session, job_id, "job.paused", "Paused.", data={"outcome": outcome})
    return won


def _end_attempt(session: Session, job_id: str, token: int, outcome: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.token == token)
        .values(finished_at=utc_now(), outcome=outcome.lower())
    )


def cancel(session: Session, job: Job) -> bool:
    """Cancel a queued or paused job at once, ask a running one to stop; false where that was asked for before.

    Raises `Conflict` when the job has ended in another way.
    """
    waits, runs = Job.status.in_(("queued", "paused")), Job.status.in_(("running", "pausing"))
    if ended := change(session, and_(Job.id == job.id, waits), **_ending(session, job.id, "cancelled")):
        emit(session, job.id, "job.cancelled", f"Cancelled while it was {job.status}.")
    elif asked := change(session, and_(Job.id == job.id, runs), status="cancelling"):
        emit(session, job.id, "job.cancelling", "Asked to stop.")
    session.refresh(job)
    if job.status not in ("cancelling", "cancelled"):
        raise Conflict(f"The job has already {job.status}.", code="JOB_FINISHED", extra={"job_status": job.status})
    return ended or asked


def reconcile(session: Session, max_attempts: int, running_limit: int | None = None) -> list[str]:
    """Free jobs whose worker has gone: queue them again, end the cancelled and the hopeless ones.

    Returns the ids of queued jobs that are due, for the caller to ring where the broker no longer knows of them.
    """
    expired = select(Job).where(Job.status.in_(HELD), Job.lease_until < db_epoch())
    for job in session.scalars(expired.execution_options(populate_existing=True)):
        still = and_(Job.id == job.id, Job.token == job.token, Job.status == job.status, Job.lease_until < db_epoch())
        _free(session, job, still, max_attempts)
    return turns.due(session, running_limit)


def clip_leases(session: Session, lease_seconds: float) -> None:
    """Let no lease run longer than that from now: after the database's clock was set back, dead workers' would."""
    latest = db_epoch() + lease_seconds
    rows_changed(session, update(Job).where(Job.status.in_(HELD), Job.lease_until > latest).values(lease_until=latest))


def _free(session: Session, job: Job, still: ColumnElement[bool], max_attempts: int) -> None:
    if job.status == "cancelling":
        if change(session, still, **_ending(session, job.id, "cancelled")):
            _end_attempt(session, job.id, job.token, "cancelled")
            emit(session, job.id, "job.cancelled", "Cancelled; its worker had gone.")
    elif job.status == "pausing":
        _set_aside(session, still, job.id, job.token, "worker_lost")
    elif job.attempts < max_attempts:
        _requeue(session, still, job.id, job.token, "worker_lost")
    elif change(session, still, **_ending(session, job.id, "failed", CRASH_LOOP)):
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
