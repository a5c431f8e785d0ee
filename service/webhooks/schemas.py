"""HTTP bodies of webhook endpoints and deliveries, and how their rows are shown."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.specs.part import ShortText
from service.specs.webhook import WebhookEvent, WebhookUrl
from service.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint

ALL_EVENTS: list[WebhookEvent] = list(get_args(WebhookEvent))


def _distinct(events: list[WebhookEvent]) -> list[WebhookEvent]:
    if len(set(events)) != len(events):
        raise PydanticCustomError("events", "each event can be named once")
    return events


def _without_default(schema: dict[str, Any]) -> None:
    """A field that is left out stays as it is, whatever pydantic would fill in."""
    schema.pop("default")


Events: TypeAlias = Annotated[list[WebhookEvent], Field(min_length=1, max_length=5), AfterValidator(_distinct)]


class NewWebhookEndpoint(BaseModel):
    """An order for a webhook endpoint of the caller's tenant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: WebhookUrl | None = Field(
        description="where to; null for the endpoint, one per tenant, whose secret signs the `webhook_url` of jobs"
    )
    events: Events = Field(ALL_EVENTS, description="what to tell of")
    description: ShortText = ""


class WebhookEndpointChanges(BaseModel):
    """Fields of a webhook endpoint to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: WebhookUrl = Field("", json_schema_extra=_without_default)
    events: Events = Field(ALL_EVENTS, json_schema_extra=_without_default)
    description: ShortText = Field("", json_schema_extra=_without_default)
    enabled: bool = Field(
        True, json_schema_extra=_without_default, description="what waited is sent when an endpoint is enabled again"
    )


class WebhookEndpointView(BaseModel):
    """Where webhooks go, without the secret."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str | None = Field(description="null: the addresses that jobs name as their `webhook_url`")
    events: list[WebhookEvent]
    description: str
    enabled: bool
    disabled_reason: Literal["asked", "gone", "failing"] | None = Field(
        description="asked for; it answered 410; it failed for five days"
    )
    failing_since: datetime | None = Field(description="first failed try after the last success")
    created_at: datetime


class CreatedWebhookEndpoint(WebhookEndpointView):
    """A webhook endpoint with a fresh secret."""

    secret: str = Field(description="whsec_…, shown in this answer only")


class WebhookAttemptView(BaseModel):
    """One try to deliver."""

    number: int
    started_at: datetime
    seconds: float | None = Field(description="null while it runs, or where the process that ran it died")
    response_status: int | None
    error: (
        Literal[
            "refused",
            "redirected",
            "gone",
            "timeout",
            "name_unknown",
            "address_refused",
            "connect_failed",
            "tls_failed",
            "connection_lost",
            "not_http",
        ]
        | None
    ) = Field(description="null after a 2xx")


class WebhookDeliveryView(BaseModel):
    """One event on its way to one endpoint; kept for 30 days."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: str
    event_id: str = Field(description="the header `webhook-id`")
    type: str
    job_id: str | None
    url: str | None = Field(description="the job's own `webhook_url`; null: the endpoint's")
    status: Literal["pending", "succeeded", "failed"]
    attempts: list[WebhookAttemptView]
    next_attempt_at: datetime | None = Field(description="at the earliest; null when there will be none")
    created_at: datetime
    finished_at: datetime | None


def endpoint_view(row: WebhookEndpoint) -> WebhookEndpointView:
    """The public face of an endpoint."""
    return WebhookEndpointView.model_validate(
        {name: getattr(row, name) for name in WebhookEndpointView.model_fields if name != "object"}
    )


def delivery_views(session: Session, rows: list[WebhookDelivery]) -> list[WebhookDeliveryView]:
    """Deliveries with their attempts, read at once."""
    attempts: dict[str, list[WebhookAttemptView]] = defaultdict(list)
    of_these = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_([row.id for row in rows]))
    for row in session.scalars(of_these.order_by(WebhookAttempt.number)):
        attempts[row.delivery_id].append(WebhookAttemptView.model_validate(row, from_attributes=True))
    return [_delivery_view(row, attempts[row.id]) for row in rows]


def _delivery_view(row: WebhookDelivery, attempts: list[WebhookAttemptView]) -> WebhookDeliveryView:
    waits = row.status == "pending" and not row.leased
    shown: dict[str, Any] = {
        name: getattr(row, name)
        for name in WebhookDeliveryView.model_fields
        if name not in ("object", "attempts", "next_attempt_at")
    }
    return WebhookDeliveryView(
        **shown, attempts=attempts, next_attempt_at=datetime.fromtimestamp(row.due_at, UTC) if waits else None
    )
