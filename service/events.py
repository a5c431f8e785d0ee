"""Events of a job: what happened, in an order that a reader can resume."""

from typing import Any

from sqlalchemy.orm import Session

from service.ids import new_id
from service.tables import Event, utc_now
from service.webhooks import outbox


def emit(
    session: Session,
    job_id: str,
    type_: str,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Add one event, and its webhooks, within the caller's transaction: told if and only if it happened."""
    event = Event(
        id=new_id("evt"), job_id=job_id, time=utc_now(), level=level, type=type_, message=message, data=data or {}
    )
    session.add(event)
    outbox.queue(session, event)
