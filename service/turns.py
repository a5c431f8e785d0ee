"""Whose turn it is: tenants take turns, whatever each has queued.

A queued job's turn is the number of its tenant's jobs that a worker has, plus its place among its tenant's queued ones.
The lowest turn goes first, then the highest priority, then the oldest; jobs that are not due yet stand behind.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, bindparam, case, func, select
from sqlalchemy.orm import Session

from service.db import db_epoch
from service.states import HELD
from service.tables import Job, Tenant

_FIRST_LOOK = 50
"""Jobs whose device is looked at before all of them are: reading what a job asks for costs more than its turn."""

_ALL = 2**31


def _turns() -> Select[Any]:
    held = select(Job.tenant, func.count().label("held")).where(Job.status.in_(HELD)).group_by(Job.tenant).cte("held")
    running = func.coalesce(held.c.held, 0)
    later = case((Job.not_before > db_epoch(), 1), else_=0)
    place = func.row_number().over(partition_by=Job.tenant, order_by=(later, Job.priority.desc(), Job.id))
    columns = (Job.id, Job.tenant, Job.priority, later.label("later"))
    turns = select(*columns, (running + place).label("turn")).outerjoin(held, held.c.tenant == Job.tenant)
    return turns.where(Job.status == "queued")


def _order_of(turns: Subquery) -> tuple[ColumnElement[Any], ...]:
    return turns.c.later, turns.c.turn, turns.c.priority.desc(), turns.c.id


# Built once: building them costs more than running them on a short queue.
_TURNS = _turns().subquery("turns")
_ORDER = _order_of(_TURNS)
_RANKED = select(_TURNS.c.id, func.row_number().over(order_by=_ORDER).label("place")).subquery("ranked")
_PLACES = select(_RANKED.c.id, _RANKED.c.place).where(_RANKED.c.id.in_(bindparam("ids", expanding=True)))

_MAY_GO = (_TURNS.c.later == 0, _TURNS.c.tenant.not_in(bindparam("full", expanding=True)))
_DUE = select(_TURNS.c.id).where(*_MAY_GO).order_by(*_ORDER)
_FIRST = _DUE.limit(1)
_AHEAD = select(_TURNS).where(*_MAY_GO).order_by(*_ORDER).limit(bindparam("looked_at")).subquery("ahead")
_FIRST_WITHOUT_GPU = (
    select(_AHEAD.c.id)
    .join(Job, Job.id == _AHEAD.c.id)
    .where(Job.configuration["device"].as_string().is_distinct_from("cuda"))
    .order_by(*_order_of(_AHEAD))
    .limit(1)
)
_HELD = func.sum(case((Job.status.in_(HELD), 1), else_=0))
_LOADS = select(Job.tenant, _HELD).where(Job.status.in_(("queued", *HELD))).group_by(Job.tenant)


def first(session: Session, *, gpu: bool, running_limit: int | None) -> str | None:
    """Id of the job whose turn it is among those that are due; without a `gpu` none that asks for cuda.

    A tenant whose running jobs have reached its limit is passed over: its own `running_jobs`, or else `running_limit`.
    """
    full = {"full": _full(session, running_limit)}
    if gpu:
        return session.scalars(_FIRST, full).first()
    near = session.scalars(_FIRST_WITHOUT_GPU, full | {"looked_at": _FIRST_LOOK}).first()
    return near or session.scalars(_FIRST_WITHOUT_GPU, full | {"looked_at": _ALL}).first()


def due(session: Session, running_limit: int | None) -> list[str]:
    """Ids of all queued jobs that are due and within their tenant's limit, in the order of their turns."""
    return list(session.scalars(_DUE, {"full": _full(session, running_limit)}))


def _full(session: Session, running_limit: int | None) -> list[str]:
    """Tenants that have as many jobs running as they may."""
    rows = session.execute(select(Tenant.name, Tenant.limits))
    own = {name: limits["running_jobs"] for name, limits in rows if "running_jobs" in limits}
    if running_limit is None and not own:
        return []
    limits = ((tenant, running, own.get(tenant, running_limit)) for tenant, running in session.execute(_LOADS))
    return [tenant for tenant, running, limit in limits if limit is not None and running >= limit]


def places(session: Session, ids: list[str]) -> dict[str, int]:
    """Where queued jobs stand: 1 goes next."""
    return {row.id: row.place for row in session.execute(_PLACES, {"ids": ids})} if ids else {}
