"""What a webhook says: the job in short, with the link to all of it."""

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.remedies import remedy
from service.schemas import JobErrorView, VerdictLine
from service.specs.webhook import WebhookEvent
from service.states import Kind, Status
from service.tables import Job

TEST = "webhook.test"


class ToldResult(BaseModel):
    """What a finished compression made; the measurements are in the job."""

    model_id: str | None
    verdict: list[VerdictLine]


class ToldJob(BaseModel):
    """A job as it was when the event happened."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["job"] = "job"
    kind: Kind
    name: str
    metadata: dict[str, str]
    status: Status
    model_id: str
    dataset_id: str | None
    result: ToldResult | None
    error: JobErrorView | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str] = Field({}, description="`self`; a path where the service knows no public_url")


class WebhookPayload(BaseModel):
    """The body of a webhook; the header `webhook-id` is the id of the event, the same at every repetition."""

    model_config = ConfigDict(extra="forbid")

    type: WebhookEvent
    timestamp: datetime = Field(description="when the event happened; webhook-timestamp is when it was sent")
    data: ToldJob


def told(session: Session, job_id: str) -> dict[str, Any]:
    """`data` of a webhook about a job, as the caller's transaction sees it."""
    columns = select(
        Job.id, Job.kind, Job.name, Job.metadata_.label("metadata"), Job.status, Job.model_id, Job.dataset_id,
        Job.result, Job.error, Job.created_at, Job.started_at, Job.finished_at,
    )  # fmt: skip
    row = session.execute(columns.where(Job.id == job_id)).one()._asdict()
    result, error = row.pop("result"), row.pop("error")
    compressed = result is not None and row["kind"] == "compression"
    made = ToldResult(model_id=result.get("model_id"), verdict=result["verdict"]) if compressed else None
    failed = JobErrorView(**error, advice=remedy(error["code"])) if error is not None else None
    return ToldJob(**row, result=made, error=failed).model_dump(mode="json")


def body(type_: str, happened_at: datetime, data: dict[str, Any], base: str) -> bytes:
    """The bytes of a webhook, the same at every send while `base`, the service's address, stays."""
    if type_ != TEST:
        data = {**data, "links": {"self": f"{base.rstrip('/')}/v1/jobs/{data['id']}"}}
    whole = {"type": type_, "timestamp": happened_at.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"), sort_keys=False).encode()
