"""Inspections: a look at a model before anything is pruned. Each is a job, and is followed as one."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service import jobs
from service.deps import BrokerDep, RawJson, SessionDep, Writer, parse_json, replay_or
from service.openapi import json_body
from service.problems import invalid_body, responses
from service.resolve.inspection import resolve_inspection
from service.routes.jobs import known_dataset, queue, ready_model
from service.schemas import JobView
from service.specs.inspection import InspectionSpec
from service.worker_view import device_kinds, live_workers

router = APIRouter(prefix="/v1/models", tags=["jobs"])


@router.post(
    "/{model_id}/inspections",
    status_code=202,
    summary="Inspect a model",
    response_model=JobView,
    responses=responses(400, 404, 409, 413, 415, 422),
    openapi_extra=json_body(InspectionSpec),
)
def create_inspection(
    principal: Writer,
    body: RawJson,
    session: SessionDep,
    broker: BrokerDep,
    request: Request,
    response: Response,
    model_id: str,
) -> Any:
    """Queues a job that tells what is redundant in the model and what cutting it would cost; it makes no model."""
    digest = hashlib.sha256(body).hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        return replayed
    submitted = parse_json(body)
    try:
        spec = InspectionSpec.model_validate(submitted)
    except ValidationError as error:
        raise invalid_body(error, submitted, "INVALID_SPEC") from error
    model = ready_model(session, principal, model_id)
    dataset = known_dataset(session, principal, spec.dataset_id)
    configuration, warnings = resolve_inspection(spec, model, dataset, device_kinds(live_workers(session)))
    job = jobs.new_job(principal.tenant, submitted, configuration, warnings, kind="inspection")
    return queue(session, broker, principal, request, response, digest, job)
