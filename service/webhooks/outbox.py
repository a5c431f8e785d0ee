"""Events on their way out: one row per event and endpoint, written in the transaction in which the event happened.

So an event is told if and only if it happened, whatever dies in between. Nothing is sent here.
"""

from datetime import timedelta
from typing import Any, get_args

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.db import db_epoch, rows_changed
from service.ids import new_id
from service.specs.webhook import WebhookEvent
from service.tables import Event, Job, WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import signing
from service.webhooks.payload import TEST, told

EVENTS: tuple[str, ...] = get_args(WebhookEvent)
KEPT = timedelta(days=30)


def queue(session: Session, event: Event) -> None:
    """Put an event out for every endpoint of its tenant that asks for its type, and for its job's own `webhook_url`."""
    if event.type not in EVENTS:
        return
    tenant, url = session.execute(select(Job.tenant, Job.webhook_url).where(Job.id == event.job_id)).one()
    enabled = select(WebhookEndpoint.id, WebhookEndpoint.events).where(
        WebhookEndpoint.tenant == tenant, WebhookEndpoint.url.is_not(None), WebhookEndpoint.enabled
    )
    # Locked, so that no endpoint is deleted before the row that names it is there: the job's own change would fail.
    found = session.execute(enabled.with_for_update(read=True, key_share=True))
    goes_to: list[tuple[str, str | None]] = [(row.id, None) for row in found if event.type in row.events]
    if url is not None:
        goes_to.append((signer_of_jobs(session, tenant), url))
    if goes_to:
        data = told(session, event.job_id)
        session.add_all(_delivery(tenant, endpoint_id, event, data, url) for endpoint_id, url in goes_to)


def _delivery(tenant: str, endpoint_id: str, event: Event, data: dict[str, Any], url: str | None) -> WebhookDelivery:
    return WebhookDelivery(
        id=new_id("wvd"),
        tenant=tenant,
        endpoint_id=endpoint_id,
        event_id=event.id,
        job_id=event.job_id,
        type=event.type,
        url=url,
        data=data,
        status="pending",
        due_at=db_epoch(),
        created_at=event.time,
    )


def signer_of_jobs(session: Session, tenant: str) -> str:
    """Id of the tenant's endpoint without a URL, made when it is missing.

    Its secret signs what goes to the `webhook_url` of jobs, and its deliveries are those.
    """
    wanted = select(WebhookEndpoint.id).where(WebhookEndpoint.tenant == tenant, WebhookEndpoint.url.is_(None))
    wanted = wanted.with_for_update(read=True, key_share=True)
    known = session.scalar(wanted)
    if known is not None:
        return known
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    values = {
        "id": new_id("whe"),
        "tenant": tenant,
        "url": None,
        "description": "webhook_url of jobs",
        "events": list(EVENTS),
        "enabled": True,
        "secrets": signing.first(signing.new_secret()),
        "created_at": utc_now(),
    }
    session.execute(insert(WebhookEndpoint).values(values).on_conflict_do_nothing())
    return session.scalars(wanted).one()


def queue_test(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """Put a `webhook.test` out for one endpoint."""
    delivery = WebhookDelivery(
        id=new_id("wvd"),
        tenant=endpoint.tenant,
        endpoint_id=endpoint.id,
        event_id=new_id("evt"),
        type=TEST,
        data={"endpoint_id": endpoint.id, "object": "webhook_endpoint"},
        status="pending",
        due_at=db_epoch(),
    )
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def queue_again(session: Session, delivery: WebhookDelivery) -> None:
    """Send a delivery once more, now and with its whole schedule ahead; its attempts so far stay in its log.

    One that is waiting for its next try is sent at once; one that is being sent just now is left alone.
    """
    ended = WebhookDelivery.status != "pending"
    waiting = WebhookDelivery.leased.is_(False)
    rows_changed(
        session,
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery.id, ended | waiting)
        .values(status="pending", tries=0, due_at=db_epoch(), leased=False, finished_at=None),
    )
    session.refresh(delivery)


def expire(session: Session) -> None:
    """Forget deliveries, whatever became of them, 30 days after their event."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < utc_now() - KEPT))
