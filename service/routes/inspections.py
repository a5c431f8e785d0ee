"""Inspections: a look at a model before anything is pruned. Each is a job, and is followed as one."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request

from service.deps import BrokerDep, RawJson, SessionDep, Writer, parse_json, replay_or
from service.openapi import json_body
from service.problems import responses
from service.routes.submission import draft_inspection, queue, read_spec
from service.schemas import JobView
from service.specs.inspection import InspectionSpec

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
    model_id: str,
) -> Any:
    """Queues a job that tells what is redundant in the model and what cutting it would cost; it makes no model."""
    digest = hashlib.sha256(body).hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        return replayed
    submitted = parse_json(body)
    spec = read_spec(InspectionSpec, submitted)
    job = draft_inspection(session, principal, submitted, spec, model_id)
    return queue(session, broker, principal, request, digest, job)
