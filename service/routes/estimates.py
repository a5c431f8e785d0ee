"""What a job would take, before it is submitted."""

from typing import Any

from fastapi import APIRouter

from service.deps import AddressesDep, RawJson, SessionDep, SettingsDep, StorageDep, Writer, parse_json
from service.errors import invalid
from service.estimate import Estimate, estimate
from service.openapi import json_body
from service.problems import responses
from service.resolve.order import Order
from service.routes.submission import draft_job, read_spec
from service.specs import JobSpec
from service.tables import Dataset, Model
from service.worker_view import live_workers

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post(
    "/jobs:estimate",
    summary="Estimate a job's time, memory, disk and result",
    response_model=Estimate,
    responses=responses(400, 404, 409, 413, 415, 422),
    openapi_extra=json_body(JobSpec),
)
def estimate_job(
    principal: Writer,
    body: RawJson,
    addresses: AddressesDep,
    session: SessionDep,
    settings: SettingsDep,
    storage: StorageDep,
) -> Any:
    """The body of a job; refused as the job would be, stored nowhere."""
    submitted = parse_json(body)
    spec = read_spec(JobSpec, submitted)
    if (refusal := addresses.refusal(spec.webhook_url)) is not None:
        raise invalid("/webhook_url", refusal, "WEBHOOK_URL_REFUSED")
    job = draft_job(session, principal, submitted, spec)
    dataset = None if job.dataset_id is None else session.get_one(Dataset, job.dataset_id)
    order = Order(spec, session.get_one(Model, job.model_id), dataset, None)
    free = storage.free_bytes()
    usable = None if free is None else free - settings.disk_reserve_bytes
    return estimate(session, order, live_workers(session), usable)
