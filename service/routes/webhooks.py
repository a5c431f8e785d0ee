"""Webhook endpoints of the caller's tenant, and what became of the deliveries to them."""

import hashlib
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth import Principal
from service.deps import AddressesDep, RawJson, Reader, SessionDep, Writer, parse_json, remember, replay_or
from service.errors import Conflict, NotFound, invalid
from service.idempotency import secret_not_kept
from service.ids import new_id
from service.openapi import json_body
from service.paging import Cursor, Limit, newest_first
from service.problems import invalid_body, responses
from service.schemas import Page
from service.tables import WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import outbox, signing
from service.webhooks.schemas import (
    CreatedWebhookEndpoint,
    NewWebhookEndpoint,
    WebhookDeliveryView,
    WebhookEndpointChanges,
    WebhookEndpointView,
    delivery_views,
    endpoint_view,
)

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])

MOST_ENDPOINTS = 20
ANSWER_LOST = "Where that answer was lost, rotate the endpoint's secret under a new Idempotency-Key."
Body = TypeVar("Body", bound=BaseModel)


@router.post(
    "",
    status_code=201,
    summary="Create a webhook endpoint",
    response_model=CreatedWebhookEndpoint,
    responses=responses(400, 409, 413, 415, 422),
    openapi_extra=json_body(NewWebhookEndpoint),
)
def create_webhook_endpoint(
    principal: Writer, body: RawJson, addresses: AddressesDep, session: SessionDep, request: Request, response: Response
) -> Any:
    """The secret is in this answer only: a repetition under the same Idempotency-Key is 409 and names the endpoint."""
    order = _order(NewWebhookEndpoint, parse_json(body))
    refusal = addresses.refusal(order.url)  # before the transaction begins: a look-up may take seconds
    digest = hashlib.sha256(body).hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        raise secret_not_kept(replayed, "endpoint_id", ANSWER_LOST)
    if refusal is not None:
        raise invalid("/url", refusal, "WEBHOOK_URL_REFUSED")
    _check_room(session, principal.tenant, order.url)
    secret = signing.new_secret()
    row = WebhookEndpoint(
        id=new_id("whe"), tenant=principal.tenant, secrets=signing.first(secret), **order.model_dump()
    )
    session.add(row)
    session.flush()
    headers = {"Location": f"/v1/webhook_endpoints/{row.id}"}
    response.headers.update(headers)
    return _with_secret(session, principal, request, digest, row, secret, 201, headers)


def _order(kind: type[Body], value: Any) -> Body:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise invalid_body(error, value) from error


def _check_room(session: Session, tenant: str, url: str | None) -> None:
    owned = select(WebhookEndpoint.id).where(WebhookEndpoint.tenant == tenant)
    session.execute(
        owned.with_for_update(key_share=True)
    )  # one creation at a time near the limit; the count sees the others'
    if url is None and session.scalar(owned.where(WebhookEndpoint.url.is_(None))) is not None:
        raise Conflict("There is an endpoint without a URL already; rotate its secret.", code="WEBHOOK_ENDPOINT_EXISTS")
    if (session.scalar(select(func.count()).select_from(owned.subquery())) or 0) >= MOST_ENDPOINTS:
        raise Conflict(f"A tenant has at most {MOST_ENDPOINTS} webhook endpoints.", code="TOO_MANY_WEBHOOK_ENDPOINTS")


def _with_secret(
    session: Session,
    principal: Principal,
    request: Request,
    digest: str,
    row: WebhookEndpoint,
    secret: str,
    status: int,
    headers: dict[str, str],
) -> CreatedWebhookEndpoint:
    created = CreatedWebhookEndpoint(**endpoint_view(row).model_dump(), secret=secret)
    remember(session, principal, request, digest, status, headers, endpoint_view(row).model_dump(mode="json"))
    return created


@router.get("", summary="List webhook endpoints", response_model=Page[WebhookEndpointView], responses=responses(422))
def list_webhook_endpoints(principal: Reader, session: SessionDep, limit: Limit = 20, cursor: Cursor = None) -> Any:
    """Newest first; secrets are never shown."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.tenant == principal.tenant)
    rows, next_cursor = newest_first(session, query, WebhookEndpoint.id, limit, cursor)
    return Page[WebhookEndpointView](data=[endpoint_view(row) for row in rows], next_cursor=next_cursor)


@router.get(
    "/{endpoint_id}", summary="Get a webhook endpoint", response_model=WebhookEndpointView, responses=responses(404)
)
def get_webhook_endpoint(principal: Reader, session: SessionDep, endpoint_id: str) -> Any:
    """Where it leads, what it is told of, and whether it is failing."""
    return endpoint_view(_owned(session, principal, endpoint_id))


@router.patch(
    "/{endpoint_id}",
    summary="Change a webhook endpoint",
    response_model=WebhookEndpointView,
    responses=responses(400, 404, 409, 413, 415, 422),
    openapi_extra=json_body(WebhookEndpointChanges),
)
def change_webhook_endpoint(
    principal: Writer, body: RawJson, addresses: AddressesDep, session: SessionDep, endpoint_id: str
) -> Any:
    """Fields that are left out stay. Enabling forgets why it was disabled and sends what has waited."""
    order = _order(WebhookEndpointChanges, parse_json(body))
    changes = order.model_dump(exclude_unset=True)
    refusal = addresses.refusal(changes.get("url"))
    row = _owned(session, principal, endpoint_id, lock=True)
    if refusal is not None:
        raise invalid("/url", refusal, "WEBHOOK_URL_REFUSED")
    if row.url is None and changes.keys() & {"url", "events"}:
        raise Conflict("This endpoint stands for the addresses that jobs name.", code="WEBHOOK_ENDPOINT_OF_JOBS")
    for name, value in changes.items():
        setattr(row, name, value)
    if "enabled" in changes:
        row.disabled_reason = None if order.enabled else "asked"
    if changes.get("enabled") or "url" in changes:
        row.failing_since = None
    return endpoint_view(row)


@router.delete("/{endpoint_id}", status_code=204, summary="Delete a webhook endpoint", responses=responses(404))
def delete_webhook_endpoint(principal: Writer, session: SessionDep, endpoint_id: str) -> None:
    """With its secret, its deliveries and their log; what waits is not sent any more."""
    session.delete(_owned(session, principal, endpoint_id))


@router.post(
    "/{endpoint_id}/test",
    status_code=202,
    summary="Send a test to a webhook endpoint",
    response_model=WebhookDeliveryView,
    responses=responses(400, 404, 409, 422),
)
def test_webhook_endpoint(principal: Writer, session: SessionDep, endpoint_id: str, request: Request) -> Any:
    """Queues a `webhook.test`; the list of deliveries tells what came of it."""
    row = _owned(session, principal, endpoint_id)
    digest = hashlib.sha256(b"").hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        return replayed
    _check_enabled(row)
    if row.url is None:
        raise Conflict("This endpoint stands for the addresses that jobs name.", code="WEBHOOK_ENDPOINT_OF_JOBS")
    view = delivery_views(session, [outbox.queue_test(session, row)])[0]
    remember(session, principal, request, digest, 202, {}, view.model_dump(mode="json"))
    return view


@router.post(
    "/{endpoint_id}/rotate_secret",
    summary="Rotate the secret of a webhook endpoint",
    response_model=CreatedWebhookEndpoint,
    responses=responses(400, 404, 409, 422),
)
def rotate_webhook_secret(principal: Writer, session: SessionDep, endpoint_id: str, request: Request) -> Any:
    """The new secret is in this answer only: a repetition under the same Idempotency-Key rotates nothing and is 409.
    For 24 hours webhooks are signed with the old one too."""
    row = _owned(session, principal, endpoint_id, lock=True)
    digest = hashlib.sha256(b"").hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        raise secret_not_kept(replayed, "endpoint_id", ANSWER_LOST)
    secret = signing.new_secret()
    row.secrets = signing.rotated(row.secrets, secret, utc_now())
    return _with_secret(session, principal, request, digest, row, secret, 200, {})


@router.get(
    "/{endpoint_id}/deliveries",
    summary="List the deliveries to a webhook endpoint",
    response_model=Page[WebhookDeliveryView],
    responses=responses(404, 422),
)
def list_webhook_deliveries(
    principal: Reader,
    session: SessionDep,
    endpoint_id: str,
    job_id: Annotated[str | None, Query(description="only those about this job")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Any:
    """Newest first, each with its attempts; kept for 30 days."""
    _owned(session, principal, endpoint_id)
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    if job_id is not None:
        query = query.where(WebhookDelivery.job_id == job_id)
    rows, next_cursor = newest_first(session, query, WebhookDelivery.id, limit, cursor)
    return Page[WebhookDeliveryView](data=delivery_views(session, rows), next_cursor=next_cursor)


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    summary="Deliver a webhook again",
    response_model=WebhookDeliveryView,
    responses=responses(404, 409),
)
def redeliver_webhook(principal: Writer, session: SessionDep, endpoint_id: str, delivery_id: str) -> Any:
    """Sends it now, under the same webhook-id and with its whole schedule ahead; its attempts so far stay."""
    row = _owned(session, principal, endpoint_id)
    found = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == row.id)
    delivery = session.scalar(found)
    if delivery is None:
        raise NotFound("There is no such delivery.")
    _check_enabled(row)
    outbox.queue_again(session, delivery)
    return delivery_views(session, [delivery])[0]


def _owned(session: Session, principal: Principal, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """The tenant's endpoint, locked so that changes come one after the other. Raises `NotFound`."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant == principal.tenant)
    row = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if row is None:
        raise NotFound("There is no such webhook endpoint.")
    return row


def _check_enabled(row: WebhookEndpoint) -> None:
    if not row.enabled:
        raise Conflict("The endpoint is disabled; enable it first.", code="WEBHOOK_ENDPOINT_DISABLED")
