"""Whose turn it is: tenants take turns, whatever each has queued.

A queued job's turn is the number of its tenant's jobs that a worker has, plus its place among its tenant's queued ones.
The lowest turn goes first, then the highest priority, then the oldest; jobs that are not due yet stand behind.
"""

import time
from contextlib import nullcontext
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import CTE, ColumnElement, Select, Subquery, bindparam, case, func, or_, select
from sqlalchemy.orm import Session, aliased

from service.db import db_epoch
from service.states import HELD
from service.tables import Job, Tenant

_SHORT = 50
"""Queues below this length are ranked whenever a place is asked for."""
_BELIEVED_PER_JOB, _LONGEST_BELIEVED = 0.001, 1.0
"""Seconds: so ranking takes a few percent of one core, however long the queue and however often it is asked for."""


def _held() -> CTE:
    return select(Job.tenant, func.count().label("held")).where(Job.status.in_(HELD)).group_by(Job.tenant).cte("held")


def _turns() -> Select[Any]:
    held = _held()
    running = func.coalesce(held.c.held, 0)
    later = case((Job.not_before > db_epoch(), 1), else_=0)
    place = func.row_number().over(partition_by=Job.tenant, order_by=(later, Job.priority.desc(), Job.id))
    columns = (Job.id, Job.tenant, Job.priority, later.label("later"))
    turns = select(*columns, (running + place).label("turn")).outerjoin(held, held.c.tenant == Job.tenant)
    return turns.where(Job.status == "queued")


def _order_of(turns: Subquery) -> tuple[ColumnElement[Any], ...]:
    return turns.c.later, turns.c.turn, turns.c.priority.desc(), turns.c.id


def _first(*, gpu: bool) -> Select[Any]:
    """The job whose turn it is: as each tenant's turns follow one another, it is the first of some tenant.

    Tenants, their highest priorities and their first jobs are found by steps along an index, however many jobs stand
    behind them.
    """
    waiting = select(func.min(Job.tenant).label("tenant")).where(Job.status == "queued").cte("waiting", recursive=True)
    behind = select(func.min(Job.tenant)).where(Job.status == "queued", Job.tenant > waiting.c.tenant)
    waiting = waiting.union_all(select(behind.scalar_subquery()).where(waiting.c.tenant.is_not(None)))

    def may_go(job: type[Job]) -> tuple[ColumnElement[bool], ...]:
        due = or_(job.not_before.is_(None), job.not_before <= db_epoch())
        runs_here = () if gpu else (job.configuration["device"].as_string().is_distinct_from("cuda"),)
        return job.status == "queued", job.tenant == waiting.c.tenant, due, *runs_here

    one, other = aliased(Job), aliased(Job)
    highest = select(one.priority).where(*may_go(one)).order_by(one.priority.desc()).limit(1).correlate(waiting)
    oldest = select(other.id).where(*may_go(other), other.priority == highest.scalar_subquery()).order_by(other.id)
    head = oldest.limit(1).correlate(waiting).scalar_subquery()
    heads = select(head.label("id")).where(waiting.c.tenant.not_in(bindparam("full", expanding=True))).subquery("heads")
    held = _held()
    first = select(Job.id).join(heads, heads.c.id == Job.id).outerjoin(held, held.c.tenant == Job.tenant)
    return first.order_by(func.coalesce(held.c.held, 0), Job.priority.desc(), Job.id).limit(1)


# Built once: building them costs more than running them on a short queue.
_TURNS = _turns().subquery("turns")
_ORDER = _order_of(_TURNS)
_PLACES = select(_TURNS.c.id).order_by(*_ORDER)
_MAY_GO = (_TURNS.c.later == 0, _TURNS.c.tenant.not_in(bindparam("full", expanding=True)))
_DUE = select(_TURNS.c.id).where(*_MAY_GO).order_by(*_ORDER)
_FIRST, _FIRST_WITHOUT_GPU = _first(gpu=True), _first(gpu=False)
_HELD = func.sum(case((Job.status.in_(HELD), 1), else_=0))
_LOADS = select(Job.tenant, _HELD).where(Job.status.in_(("queued", *HELD))).group_by(Job.tenant)


def first(session: Session, *, gpu: bool, running_limit: int | None) -> str | None:
    """Id of the job whose turn it is among those that are due; without a `gpu` none that asks for cuda.

    A tenant whose running jobs have reached its limit is passed over: its own `running_jobs`, or else `running_limit`.
    """
    return session.scalars(_FIRST if gpu else _FIRST_WITHOUT_GPU, {"full": _full(session, running_limit)}).first()


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


class _Ranking:
    """The places of all queued jobs of one database, as they were a moment ago."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until = 0.0
        self._places: dict[str, int] = {}

    def places(self, session: Session) -> dict[str, int]:
        """Place by id; of a long queue one thread ranks while the others wait for it."""
        if time.monotonic() < self._until:
            return self._places
        with self._lock if len(self._places) >= _SHORT else nullcontext():
            if time.monotonic() >= self._until:
                self._rank(session)
            return self._places

    def _rank(self, session: Session) -> None:
        self._places = {job_id: place for place, job_id in enumerate(session.scalars(_PLACES), start=1)}
        length = len(self._places)
        believed = 0.0 if length < _SHORT else min(length * _BELIEVED_PER_JOB, _LONGEST_BELIEVED)
        self._until = time.monotonic() + believed


_rankings: WeakKeyDictionary[Any, _Ranking] = WeakKeyDictionary()


def places(session: Session, ids: list[str]) -> dict[str, int]:
    """Where queued jobs stand: 1 goes next.

    Of a long queue the places are those of up to a second ago; a job that came since is not among them yet.
    """
    if not ids:
        return {}
    known = _rankings.setdefault(session.get_bind(), _Ranking()).places(session)
    return {job_id: known[job_id] for job_id in ids if job_id in known}
