"""Events of a job: what happened, in an order that a reader can resume."""

from typing import Any, cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.orm import Session

from service.ids import following, new_id
from service.tables import Event, utc_now
from service.webhooks import outbox

_INSERT = insert(cast(Table, Event.__table__))  # of the table itself: a unit of work for one row costs three times that


def emit(
    session: Session,
    job_id: str,
    type_: str,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
    first: bool = False,
) -> None:
    """Add one event, and its webhooks, within the caller's transaction: told if and only if it happened.

    `first`: the job is new and has none yet.
    """
    values = {
        "id": new_id("evt") if first else _next_id(session, job_id),
        "job_id": job_id,
        "time": utc_now(),
        "level": level,
        "type": type_,
        "message": message,
        "data": data or {},
    }
    session.execute(_INSERT, values)
    outbox.queue(session, Event(**values))


def _next_id(session: Session, job_id: str) -> str:
    """An id behind that of every event of the job, whatever the clock of the machine that wrote it.

    Whoever emits has changed the job's row in this transaction, so that no other can come between.
    """
    fresh, last = new_id("evt"), session.scalar(select(func.max(Event.id)).where(Event.job_id == job_id))
    return fresh if last is None or fresh > last else following(last)
