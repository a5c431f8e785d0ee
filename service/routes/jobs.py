"""Jobs: submit, look, wait, cancel, delete."""

import functools
import hashlib
import re
import time
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import jobs
from service.audit import unchanged
from service.checkpoints import prefix_of
from service.db import Database, on_commit
from service.deps import (
    AddressesDep,
    BrokerDep,
    DatabaseDep,
    RawJson,
    Reader,
    SessionDep,
    StorageDep,
    Writer,
    parse_json,
    replay_or,
)
from service.errors import Conflict, Invalid, NotFound, invalid
from service.fingerprints import finished_before
from service.job_view import base_url, etag, job_view, job_views
from service.openapi import json_body
from service.paging import Cursor, Limit, newest_first
from service.problems import responses
from service.routes.creation import remove_bytes
from service.routes.submission import answer, draft_job, in_turn, queue, read_spec
from service.schemas import JobView, JobWarning, Page, UtcTime, Validated
from service.specs import JobSpec
from service.states import Kind, Status
from service.tables import Job, Model

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LONGEST_WAIT = 60
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
_OWNED = select(Job).where(Job.id == bindparam("id"), Job.tenant == bindparam("tenant"))
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])")
_METADATA = re.compile(r"metadata\[([^\"\\\x00-\x1f\]]{0,256})\]")


@router.post(
    "",
    status_code=202,
    summary="Submit a compression job",
    response_model=JobView,
    responses={
        **responses(400, 404, 409, 413, 415, 422),
        200: {
            "model": JobView | Validated,
            "description": "reuse: an earlier job that gave this result; validate_only: what would be executed",
        },
    },
    openapi_extra=json_body(JobSpec),
)
def create_job(
    principal: Writer,
    body: RawJson,
    addresses: AddressesDep,
    database: DatabaseDep,
    broker: BrokerDep,
    request: Request,
    validate_only: Annotated[bool, Query(description="check everything, store nothing")] = False,
) -> Any:
    """Checks the whole order against the model and the data set before anything is queued.

    With `reuse` in the spec the answer may be a job that has succeeded with the same order about the same bytes.
    """
    submitted = parse_json(body)
    spec = read_spec(JobSpec, submitted)
    refusal = addresses.refusal(spec.webhook_url)  # before the transaction begins: a look-up may take seconds
    digest = hashlib.sha256(body).hexdigest()
    with in_turn(request), database.session_scope() as session:
        if not validate_only and (replayed := replay_or(session, principal, request, digest)) is not None:
            return replayed
        if refusal is not None:
            raise invalid("/webhook_url", refusal, "WEBHOOK_URL_REFUSED")
        job = draft_job(session, principal, submitted, spec)
        if validate_only:
            return _validated(job)
        if spec.reuse and (known := finished_before(session, job)) is not None:
            return answer(session, principal, request, digest, known, 200)
        return queue(session, broker, principal, request, digest, job)


def _validated(job: Job) -> Response:
    configuration = job.configuration | {"webhook_url": job.webhook_url}
    checked = Validated(configuration=configuration, warnings=[JobWarning(**warning) for warning in job.advice])
    return Response(checked.model_dump_json(), media_type="application/json")


@router.get("", summary="List jobs", response_model=Page[JobView], responses=responses(422))
def list_jobs(
    principal: Reader,
    session: SessionDep,
    request: Request,
    kind: Annotated[Kind | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
    model_id: Annotated[str | None, Query()] = None,
    name: Annotated[str | None, Query()] = None,
    created_after: Annotated[UtcTime | None, Query()] = None,
    created_before: Annotated[UtcTime | None, Query()] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Any:
    """Newest first. `metadata[key]=value` filters by metadata and may be repeated."""
    query = select(Job).where(Job.tenant == principal.tenant)
    for column, wanted in ((Job.kind, kind), (Job.status, status), (Job.model_id, model_id), (Job.name, name)):
        if wanted is not None:
            query = query.where(column == wanted)
    if created_after is not None:
        query = query.where(Job.created_at > created_after)
    if created_before is not None:
        query = query.where(Job.created_at < created_before)
    for key, value in _metadata_filters(request):
        query = query.where(Job.metadata_[key].as_string() == value)
    rows, next_cursor = newest_first(session, query, Job.id, limit, cursor)
    page = Page[JobView](data=job_views(session, rows, base_url(request)), next_cursor=next_cursor)
    return Response(page.model_dump_json(), media_type="application/json")  # as it stands: it need not be checked again


def _metadata_filters(request: Request) -> list[tuple[str, str]]:
    filters = []
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata"):
            match = _METADATA.fullmatch(name)
            if match is None:
                raise Invalid(
                    "Filter by metadata as metadata[key]=value, key without quotes.", code="INVALID_PARAMETER"
                )
            filters.append((match[1], value))
    return filters


@router.get(
    "/{job_id}",
    summary="Get a job",
    response_model=JobView,
    responses={**responses(404), 304: {"description": "unchanged since the ETag in If-None-Match"}},
)
async def get_job(principal: Reader, job_id: str, request: Request, response: Response, database: DatabaseDep) -> Any:
    """`Prefer: wait=N` (seconds, at most 60) holds the answer until the status changes."""
    load = functools.partial(_load, database, principal.tenant, job_id, base_url(request))
    view, tag = await run_in_threadpool(load)
    seconds = _wait_seconds(request)
    if seconds and not jobs.is_final(view.status):
        await until_changed(request, database, view, seconds)
        view, tag = await run_in_threadpool(load)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if seconds:
        headers["Preference-Applied"] = f"wait={seconds}"
    if not jobs.is_final(view.status):
        headers["Retry-After"] = "1"
    if tag in [given.strip().removeprefix("W/") for given in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(view.model_dump_json(), headers=headers, media_type="application/json")


def _load(database: Database, tenant: str, job_id: str, base: str) -> tuple[JobView, str]:
    with database.session_scope(read_only=True) as session:
        job = owned_job(session, tenant, job_id)
        view = job_view(session, job, base)
        return view, etag(view, job.version)


def owned_job(session: Session, tenant: str, job_id: str, *, lock: bool = False) -> Job:
    """The tenant's job. Raises `NotFound`, the same for another tenant's and for none.

    With `lock` it stays as it is until the transaction ends: whoever else would change or delete it waits.
    """
    job = session.scalar(_OWNED.with_for_update() if lock else _OWNED, {"id": job_id, "tenant": tenant})
    if job is None:
        raise NotFound("There is no such job.")
    return job


def _wait_seconds(request: Request) -> int:
    match = _WAIT.search(", ".join(request.headers.getlist("prefer")))
    return min(int(match[1]), LONGEST_WAIT) if match else 0


async def until_changed(request: Request, database: Database, view: JobView, seconds: int) -> None:
    """Sleep until the job's status changes or goes, the time is over or the client has left; holds no connection."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0 and not await request.is_disconnected():
        await anyio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
        if await run_in_threadpool(_status, database, view.id) != view.status:
            return


def _status(database: Database, job_id: str) -> str | None:
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(Job.status).where(Job.id == job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job", response_model=JobView, responses=responses(404, 409))
def cancel_job(principal: Writer, session: SessionDep, storage: StorageDep, job_id: str, request: Request) -> Any:
    """A queued or paused job ends at once, a running one within seconds; repeating it changes nothing."""
    job = owned_job(session, principal.tenant, job_id, lock=True)
    saved = job.checkpoint
    if not jobs.cancel(session, job):
        unchanged(session)
    if saved and job.status == "cancelled":
        on_commit(session, functools.partial(remove_bytes, storage, prefix_of(job_id)))
    return job_view(session, job, base_url(request))


@router.delete("/{job_id}", status_code=204, summary="Delete a finished job", responses=responses(404, 409))
def delete_job(principal: Writer, session: SessionDep, storage: StorageDep, job_id: str) -> None:
    """Deletes its events, metrics and artifacts too; the model that it made must be deleted first."""
    job = owned_job(session, principal.tenant, job_id, lock=True)
    if not jobs.is_final(job.status):
        raise Conflict(
            f"The job is {job.status}; cancel it first.", code="JOB_NOT_FINISHED", extra={"job_status": job.status}
        )
    made = select(Model.id).where(Model.job_id == job_id, Model.deleted_at.is_(None)).limit(1)
    if session.scalar(made) is not None:
        raise Conflict("The model that this job made still exists; delete it first.", code="MODEL_EXISTS")
    session.execute(delete(Job).where(Job.id == job_id))
    for prefix in (f"artifacts/{job_id}", prefix_of(job_id)):
        on_commit(session, functools.partial(remove_bytes, storage, prefix))
