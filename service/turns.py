"""Whose turn it is: tenants take turns, whatever each has queued.

A queued job's turn is the number of its tenant's jobs that a worker has, plus its place among its tenant's queued ones.
The lowest turn goes first, then the tenant whose last job started the longest ago, then the highest priority, then the
oldest; jobs that are not due yet stand behind.
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


def _tenants() -> CTE:
    """The tenants that have jobs in the queue, each found by a step along an index: how many jobs of each workers have,
    and when its last one started."""
    first = select(func.min(Job.tenant).label("tenant")).where(Job.status == "queued")
    waiting = first.cte("waiting", recursive=True)
    behind = select(func.min(Job.tenant)).where(Job.status == "queued", Job.tenant > waiting.c.tenant)
    waiting = waiting.union_all(select(behind.scalar_subquery()).where(waiting.c.tenant.is_not(None)))
    running = (
        select(Job.tenant, func.count().label("held")).where(Job.status.in_(HELD)).group_by(Job.tenant).cte("held")
    )
    last = select(func.max(Job.started_at)).where(Job.tenant == waiting.c.tenant).correlate(waiting).scalar_subquery()
    held = func.coalesce(running.c.held, 0).label("held")
    tenants = select(waiting.c.tenant, held, last.label("last_start"))
    tenants = tenants.outerjoin(running, running.c.tenant == waiting.c.tenant).where(waiting.c.tenant.is_not(None))
    return tenants.cte("tenants")


def _turns() -> Select[Any]:
    tenants = _tenants()
    later = case((Job.not_before > db_epoch(), 1), else_=0)
    own: Any = {"partition_by": Job.tenant, "order_by": (later, Job.priority.desc(), Job.id)}
    return (
        select(
            Job.id,
            Job.tenant,
            later.label("later"),
            (tenants.c.held + func.row_number().over(**own)).label("turn"),
            tenants.c.held,
            tenants.c.last_start,
            func.first_value(Job.priority).over(**own).label("head_priority"),
            func.first_value(Job.id).over(**own).label("head"),
        )
        .join(tenants, tenants.c.tenant == Job.tenant)
        .where(Job.status == "queued")
    )


def _order_of(turns: Subquery) -> tuple[ColumnElement[Any], ...]:
    """At one turn stand first those for whom it is the next, then the others as they did at the turn before."""
    among = (turns.c.held.desc(), turns.c.last_start.nulls_first(), turns.c.head_priority.desc(), turns.c.head)
    return turns.c.later, turns.c.turn, *among


def _first(*, gpu: bool) -> Select[Any]:
    """The job whose turn it is: as each tenant's turns follow one another, it is the first of some tenant.

    The tenants' highest priorities and first jobs, too, are found by steps along an index, however many stand behind.
    """
    tenants = _tenants()

    def may_go(job: type[Job]) -> tuple[ColumnElement[bool], ...]:
        due = or_(job.not_before.is_(None), job.not_before <= db_epoch())
        runs_here = () if gpu else (job.configuration["device"].as_string().is_distinct_from("cuda"),)
        return job.status == "queued", job.tenant == tenants.c.tenant, due, *runs_here

    one, other = aliased(Job), aliased(Job)
    highest = select(one.priority).where(*may_go(one)).order_by(one.priority.desc()).limit(1).correlate(tenants)
    oldest = select(other.id).where(*may_go(other), other.priority == highest.scalar_subquery()).order_by(other.id)
    head = oldest.limit(1).correlate(tenants).scalar_subquery().label("id")
    may_have = tenants.c.tenant.not_in(bindparam("full", expanding=True))
    heads = select(head, tenants.c.held, tenants.c.last_start).where(may_have).subquery("heads")
    first = select(Job.id).join(heads, heads.c.id == Job.id)
    return first.order_by(heads.c.held, heads.c.last_start.nulls_first(), Job.priority.desc(), Job.id).limit(1)


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
