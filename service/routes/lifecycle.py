"""What can be asked of a job that is there: pause, resume, retry, clone."""

import functools
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service import lifecycle
from service.audit import unchanged
from service.checkpoints import prefix_of
from service.db import on_commit
from service.deps import (
    AddressesDep,
    BrokerDep,
    DatabaseDep,
    SessionDep,
    SettingsDep,
    StorageDep,
    Writer,
    parse_json,
    read_body,
    replay_or,
)
from service.errors import Conflict, Invalid, NotFound, invalid
from service.job_view import base_url, job_view
from service.lifecycle import Retry, SpecPatch
from service.openapi import json_body
from service.problems import invalid_body, responses
from service.quotas import check_queue
from service.routes.creation import remove_bytes
from service.routes.jobs import owned_job
from service.routes.submission import draft_inspection, draft_job, queue, read_spec, ring
from service.schemas import JobView
from service.specs import JobSpec
from service.specs.inspection import InspectionSpec
from service.tables import Dataset, Job, Model

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


async def _optional_body(request: Request) -> bytes:
    sent = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    return await read_body(request) if sent else b"{}"


OptionalJson = Annotated[bytes, Depends(_optional_body)]


@router.post("/{job_id}/pause", summary="Pause a job", response_model=JobView, responses=responses(404, 409))
def pause_job(principal: Writer, session: SessionDep, job_id: str, request: Request) -> Any:
    """A queued job pauses at once; a running one saves a checkpoint and leaves its worker. It may be repeated."""
    job = owned_job(session, principal.tenant, job_id, lock=True)
    if not lifecycle.pause(session, job):
        unchanged(session)
    return job_view(session, job, base_url(request))


@router.post("/{job_id}/resume", summary="Resume a job", response_model=JobView, responses=responses(404, 409))
def resume_job(
    principal: Writer, session: SessionDep, broker: BrokerDep, settings: SettingsDep, job_id: str, request: Request
) -> Any:
    """Queues a paused job, which goes on from its checkpoint; repeating changes nothing."""
    job = owned_job(session, principal.tenant, job_id, lock=True)
    if job.status == "paused":
        check_queue(session, settings, principal.tenant)
    if lifecycle.resume(session, job):
        ring(session, broker, job)
    else:
        unchanged(session)
    return job_view(session, job, base_url(request))


@router.post(
    "/{job_id}/retry",
    summary="Retry a job",
    response_model=JobView,
    responses=responses(400, 404, 409, 413, 415, 422, 429),
    openapi_extra=json_body(Retry, required=False),
)
def retry_job(
    principal: Writer,
    session: SessionDep,
    broker: BrokerDep,
    storage: StorageDep,
    settings: SettingsDep,
    body: OptionalJson,
    job_id: str,
    request: Request,
) -> Any:
    """Queues a failed or cancelled job again under its id, from its checkpoint where it has one."""
    start = _retry(parse_json(body)).start
    job = owned_job(session, principal.tenant, job_id, lock=True)
    saved = job.checkpoint
    if job.status in ("failed", "cancelled"):
        _check_inputs(session, job)
        check_queue(session, settings, principal.tenant)
    if lifecycle.retry(session, job, start):
        ring(session, broker, job)
        if saved and start == "start":
            on_commit(session, functools.partial(remove_bytes, storage, prefix_of(job_id)))
    else:
        unchanged(session)
    return job_view(session, job, base_url(request))


def _retry(submitted: Any) -> Retry:
    try:
        return Retry.model_validate(submitted)
    except ValidationError as error:
        raise invalid_body(error, submitted) from error


def _check_inputs(session: Session, job: Job) -> None:
    """Raises `Conflict` when what the job works on was deleted or has expired.

    Else it cannot be, until the transaction has ended.
    """
    model = select(Model.id).where(Model.id == job.model_id, Model.deleted_at.is_(None), Model.state != "expired")
    dataset = select(Dataset.id).where(Dataset.id == job.dataset_id, Dataset.deleted_at.is_(None))
    gone = session.scalar(model.with_for_update(read=True)) is None
    gone |= job.dataset_id is not None and session.scalar(dataset.with_for_update(read=True)) is None
    if gone:
        detail = "The job's model or data set was deleted or has expired; submit a job with others."
        raise Conflict(detail, code="INPUT_DELETED", extra={"job_status": job.status})


@router.post(
    "/{job_id}/clone",
    status_code=202,
    summary="Clone a job",
    response_model=JobView,
    responses=responses(400, 404, 409, 413, 415, 422, 429),
    openapi_extra=json_body(SpecPatch, required=False),
)
def clone_job(
    principal: Writer,
    session: SessionDep,
    broker: BrokerDep,
    database: DatabaseDep,
    addresses: AddressesDep,
    body: OptionalJson,
    job_id: str,
    request: Request,
) -> Any:
    """Queues a new job of the same spec, changed by the body, a JSON merge patch; it is checked like any other."""
    patch = parse_json(body)
    if not isinstance(patch, dict):
        raise Invalid("The body is an object: the fields of the spec that change.", code="INVALID_BODY")
    digest = hashlib.sha256(body).hexdigest()
    try:
        with database.session_scope(read_only=True) as reading:
            origin = owned_job(reading, principal.tenant, job_id)
    except NotFound:  # it may have gone since a first request, which is answered again as it was
        if (replayed := replay_or(session, principal, request, digest)) is not None:
            return replayed
        raise
    submitted = merged(origin.spec, patch)
    inspects = origin.kind == "inspection"
    spec = read_spec(InspectionSpec, submitted) if inspects else read_spec(JobSpec, submitted)
    # Before the transaction begins: a look-up may take seconds.
    refusal = addresses.refusal(spec.webhook_url) if isinstance(spec, JobSpec) else None
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        return replayed
    if refusal is not None:
        raise invalid("/webhook_url", refusal, "WEBHOOK_URL_REFUSED")
    if isinstance(spec, JobSpec):
        job = draft_job(session, principal, submitted, spec)
    else:
        job = draft_inspection(session, principal, submitted, spec, origin.model_id)
    job.cloned_from = origin.id
    return queue(session, broker, principal, request, digest, job)


def merged(target: Any, patch: Any) -> Any:
    """`target` changed by a JSON merge patch (RFC 7396): null removes a name, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
