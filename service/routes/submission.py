"""The way of a job into the queue: its body read, resolved against what it is about, stored, rung for and answered."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import ValidationError
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from service import jobs
from service.auth import Principal
from service.broker import Broker
from service.db import on_commit
from service.deps import remember
from service.errors import Conflict, FieldError, NotFound
from service.fingerprints import fingerprint_of
from service.job_view import base_url, job_view
from service.problems import invalid_body, unavailable
from service.quotas import check_queue
from service.resolve import resolve
from service.resolve.inspection import resolve_inspection
from service.specs import JobSpec
from service.specs.inspection import InspectionSpec
from service.tables import Dataset, Job, Model
from service.worker_view import device_kinds, live_workers

Spec = TypeVar("Spec", JobSpec, InspectionSpec)

AT_ONCE = 3
"""Jobs that a process stores at a time: threads beyond that only take Python's lock from each other, which took half as
much processor time again as the work."""
TURN_SECONDS = 5
"""How long one waits for its turn: all who wait fit into a second, unless the database does not answer."""

# Built once: building them costs as much as running them.
_OWN: dict[str, Any] = {"id": bindparam("id"), "tenant": bindparam("tenant"), "deleted_at": None}
_MODEL = select(Model).filter_by(**_OWN).with_for_update(read=True)
_DATASET = select(Dataset).filter_by(**_OWN).with_for_update(read=True)
_STATES = {"expired": "has expired, and its files were removed"}
_NO_WORKER = {"code": "NO_WORKER", "message": "No worker is alive: the job waits until one is started."}


@contextmanager
def in_turn(request: Request) -> Iterator[None]:
    """As one of the few that store a job at a time. Raises `Unavailable` where the others do not come to an end."""
    submissions: Semaphore = request.app.state.submissions
    if not submissions.acquire(timeout=TURN_SECONDS):
        raise unavailable("Orders of jobs take too long at the moment; try again.")
    try:
        yield
    finally:
        submissions.release()


def read_spec(form: type[Spec], submitted: Any) -> Spec:
    """The spec that a body holds. Raises `Invalid` with a pointer to every fault."""
    try:
        return form.model_validate(submitted)
    except ValidationError as error:
        raise invalid_body(error, submitted, "INVALID_SPEC") from error


def draft_job(session: Session, principal: Principal, submitted: dict[str, Any], spec: JobSpec) -> Job:
    """The row of a compression that can work, not yet stored. Raises what is in its way."""
    model = ready_model(session, principal, spec.model_id, "/model_id")
    dataset = known_dataset(session, principal, spec.dataset_id)
    devices = device_kinds(live_workers(session))
    configuration, warnings = resolve(spec, model, dataset, devices)
    job = jobs.new_job(principal.tenant, submitted, configuration, _advice(warnings, devices))
    job.fingerprint = fingerprint_of(job.configuration, model, dataset)
    return job


def draft_inspection(
    session: Session, principal: Principal, submitted: dict[str, Any], spec: InspectionSpec, model_id: str
) -> Job:
    """The same for an inspection of a model."""
    model = ready_model(session, principal, model_id)
    dataset = known_dataset(session, principal, spec.dataset_id)
    devices = device_kinds(live_workers(session))
    configuration, warnings = resolve_inspection(spec, model, dataset, devices)
    job = jobs.new_job(principal.tenant, submitted, configuration, _advice(warnings, devices), kind="inspection")
    job.fingerprint = fingerprint_of(job.configuration, model, dataset)
    return job


def _advice(warnings: list[dict[str, str]], devices: list[str] | None) -> list[dict[str, str]]:
    return [*warnings, _NO_WORKER] if devices is None else warnings


def ready_model(session: Session, principal: Principal, model_id: str, *pointers: str) -> Model:
    """The tenant's model, locked so that it cannot be deleted before the job's row is there.

    Raises `NotFound`, and `Conflict` while the model is not ready; `pointers` name the fields of the body at fault.
    """
    model = session.scalar(_MODEL, {"id": model_id, "tenant": principal.tenant})
    if model is None:
        detail = "There is no such model."
        raise NotFound(detail, errors=tuple(FieldError(pointer, detail) for pointer in pointers))
    if model.state != "ready":
        detail = f"The model {_STATES.get(model.state, f'is {model.state}')}; only a ready one can be pruned."
        errors = tuple(FieldError(pointer, detail) for pointer in pointers)
        raise Conflict(detail, code="MODEL_NOT_READY", errors=errors)
    return model


def known_dataset(session: Session, principal: Principal, dataset_id: str | None) -> Dataset | None:
    """The tenant's data set, locked likewise; None where none is named. Raises `NotFound`."""
    if dataset_id is None:
        return None
    dataset = session.scalar(_DATASET, {"id": dataset_id, "tenant": principal.tenant})
    if dataset is None:
        detail = "There is no such data set."
        raise NotFound(detail, errors=(FieldError("/dataset_id", detail),))
    return dataset


def queue(
    session: Session, broker: Broker, principal: Principal, request: Request, body_sha256: str, job: Job
) -> Response:
    """Store a job as queued, ring once it is committed, and answer with it where it can be found.

    Raises what `service.quotas.check_queue` raises.
    """
    check_queue(session, request.app.state.settings, principal.tenant)
    job.request_id = request.scope["secateur_request_id"]
    jobs.submit(session, job)
    ring(session, broker, job)
    return answer(session, principal, request, body_sha256, job, 202)


def ring(session: Session, broker: Broker, job: Job) -> None:
    """Tell the workers once the job's row is committed."""
    on_commit(session, functools.partial(broker.ring, job.id))


def answer(
    session: Session, principal: Principal, request: Request, body_sha256: str, job: Job, status: int
) -> Response:
    """Show a job where it can be found, now and to repetitions of the request."""
    view = job_view(session, job, base_url(request))
    headers = {"Location": view.links["self"]}
    body = remember(session, principal, request, body_sha256, status, headers, view.model_dump(mode="json"))
    return Response(body, status, headers, "application/json")
