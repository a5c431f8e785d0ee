"""Which workers are alive and what they offer."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import db_epoch
from service.tables import Worker

_LIVE = select(Worker).where(Worker.seen_until > db_epoch()).order_by(Worker.name)


def live_workers(session: Session) -> list[Worker]:
    """Workers whose last beat still counts, by the database's clock."""
    return list(session.scalars(_LIVE))


def device_kinds(workers: list[Worker]) -> list[str] | None:
    """Kinds of device (`cpu`, `cuda`) that the workers offer together; None when there is no worker to ask."""
    if not workers:
        return None
    return sorted({device["kind"] for worker in workers for device in worker.devices})
