"""The way of one delivery through its tries. Any number of processes may work on them.

A delivery is taken by compare-and-set: its next try is moved a lease ahead by the database's clock, so that it comes
again when the process that took it dies. Every write afterwards names the number of that try.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from service.db import db_epoch, rows_changed
from service.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import signing

GONE = 410
PATIENCE = timedelta(days=5)
"""An endpoint that has failed for so long, without one success in between, is disabled."""

AT_ONCE_PER_ENDPOINT = 4
_JITTER = 0.1
_LONGEST_WAIT = 86400.0
_chance = secrets.SystemRandom()


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come."""

    id: str
    endpoint_id: str
    tenant: str


@dataclass(frozen=True)
class Parcel:
    """A delivery that this process has taken: what to send, where to, signed with what."""

    id: str
    attempt: int
    """Number of this attempt since ever; `tries` counts those of the present schedule."""
    tries: int
    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    event_id: str
    type: str
    happened_at: datetime
    data: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a send ended: the status that came back, if any, and the class of what went wrong, if anything."""

    status: int | None
    error: str | None
    seconds: float
    retry_after: float | None = None


def due(session: Session, limit: int) -> list[Due]:
    """What could be sent now, longest due first, of each endpoint only a few, so that none keeps the others waiting."""
    place = func.row_number().over(
        partition_by=WebhookDelivery.endpoint_id, order_by=(WebhookDelivery.due_at, WebhookDelivery.id)
    )
    ready = (
        select(
            WebhookDelivery.id,
            WebhookDelivery.endpoint_id,
            WebhookDelivery.tenant,
            WebhookDelivery.due_at,
            place.label("place"),
        )
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.status == "pending", WebhookDelivery.due_at <= db_epoch(), WebhookEndpoint.enabled)
        .subquery()
    )
    first = select(ready).where(ready.c.place <= AT_ONCE_PER_ENDPOINT).order_by(ready.c.due_at).limit(limit)
    return [Due(row.id, row.endpoint_id, row.tenant) for row in session.execute(first)]


def claim(session: Session, delivery_id: str, lease_seconds: float) -> Parcel | None:
    """Take a delivery that is due: counts the try before it starts. None if another process was first."""
    ready = and_(
        WebhookDelivery.id == delivery_id, WebhookDelivery.status == "pending", WebhookDelivery.due_at <= db_epoch()
    )
    taken = _change(
        session,
        ready,
        attempts=WebhookDelivery.attempts + 1,
        tries=WebhookDelivery.tries + 1,
        due_at=db_epoch() + lease_seconds,
        leased=True,
    )
    if not taken:
        return None
    both = select(WebhookDelivery, WebhookEndpoint).join(
        WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id
    )
    found = both.where(WebhookDelivery.id == delivery_id).execution_options(populate_existing=True)
    delivery, endpoint = session.execute(found).one()
    session.add(WebhookAttempt(delivery_id=delivery_id, number=delivery.attempts))
    return _parcel(delivery, endpoint)


def _parcel(delivery: WebhookDelivery, endpoint: WebhookEndpoint) -> Parcel:
    url = delivery.url or endpoint.url
    assert url is not None, "a delivery of the endpoint without a URL has one itself"
    return Parcel(
        id=delivery.id,
        attempt=delivery.attempts,
        tries=delivery.tries,
        endpoint_id=endpoint.id,
        url=url,
        secrets=tuple(signing.valid(endpoint.secrets, utc_now())),
        event_id=delivery.event_id,
        type=delivery.type,
        happened_at=delivery.created_at,
        data=delivery.data,
    )


def settle(session: Session, parcel: Parcel, outcome: Outcome, schedule: Sequence[float]) -> None:
    """Note how an attempt ended: the delivery is done, waits for its next try, or has failed for good.

    `schedule` holds the pauses between tries in seconds. Where the lease had run out and the delivery is another
    process's, the attempt is noted and nothing else.
    """
    if not _lock_endpoint(session, parcel.endpoint_id):
        return  # deleted, and its deliveries with it
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == parcel.id, WebhookAttempt.number == parcel.attempt)
        .values(seconds=outcome.seconds, response_status=outcome.status, error=outcome.error)
    )
    held = and_(
        WebhookDelivery.id == parcel.id,
        WebhookDelivery.attempts == parcel.attempt,
        WebhookDelivery.status == "pending",
        WebhookDelivery.leased,
    )
    if _change(session, held, leased=False, **_next(parcel, outcome, schedule)):
        _judge(session, parcel.endpoint_id, outcome)


def _lock_endpoint(session: Session, endpoint_id: str) -> bool:
    """First of all locks, as deleting an endpoint takes it first too, so that neither waits for the other."""
    this = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id).with_for_update(key_share=True)
    return session.scalar(this) is not None


def _next(parcel: Parcel, outcome: Outcome, schedule: Sequence[float]) -> dict[str, Any]:
    if outcome.error is None:
        return {"status": "succeeded", "finished_at": utc_now()}
    if outcome.status == GONE or parcel.tries > len(schedule):
        return {"status": "failed", "finished_at": utc_now()}
    pause = schedule[parcel.tries - 1] * _chance.uniform(1.0, 1.0 + _JITTER)
    asked = min(outcome.retry_after or 0.0, _LONGEST_WAIT)
    return {"due_at": db_epoch() + max(pause, asked)}


def _judge(session: Session, endpoint_id: str, outcome: Outcome) -> None:
    """Disable an endpoint that is gone or has failed for days; the one without a URL stands for many and stays."""
    this = and_(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.url.is_not(None))
    if outcome.error is None:
        _mark(session, and_(this, WebhookEndpoint.failing_since.is_not(None)), failing_since=None)
        return
    now = utc_now()
    _mark(session, and_(this, WebhookEndpoint.failing_since.is_(None)), failing_since=now)
    if outcome.status == GONE:
        _mark(session, and_(this, WebhookEndpoint.enabled), enabled=False, disabled_reason="gone")
    lost = and_(this, WebhookEndpoint.enabled, WebhookEndpoint.failing_since <= now - PATIENCE)
    _mark(session, lost, enabled=False, disabled_reason="failing")


def _change(session: Session, where: ColumnElement[bool], **values: Any) -> bool:
    return rows_changed(session, update(WebhookDelivery).where(where).values(**values)) == 1


def _mark(session: Session, where: ColumnElement[bool], **values: Any) -> None:
    rows_changed(session, update(WebhookEndpoint).where(where).values(**values))
