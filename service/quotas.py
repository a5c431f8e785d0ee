"""What a tenant may use, and what it uses now.

Stored bytes over the quota are 403: no repetition helps until something is deleted or the limit is raised, and 507 says
that the service itself has no room, which another tenant's client would see too. A full queue is 429 with Retry-After:
it empties by itself. Running jobs over the quota are no error at all: they wait in the queue.

Quotas are counted in the tables, in the transaction that adds to them, one tenant's additions one after the other.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, bindparam, func, select, text
from sqlalchemy.orm import Session

from service.config import Settings
from service.db import Database
from service.errors import Forbidden, TooManyRequests
from service.intake.limits import Limits
from service.intake.rows import SPLITS
from service.states import FINAL, HELD
from service.tables import Artifact, Dataset, Job, Model, Tenant

RETRY_SECONDS = 30
"""When to look at a full queue again; how long its jobs take, nobody knows."""
_LIMITS = select(Tenant.limits).where(Tenant.name == bindparam("tenant"))


class TenantLimits(BaseModel):
    """What a tenant may use; null is no limit."""

    model_config = ConfigDict(frozen=True)

    stored_bytes: int | None = Field(description="models, those still uploading, data sets and artifacts")
    queued_jobs: int | None
    running_jobs: int | None = Field(description="more wait in the queue")
    requests_per_minute: int | None = Field(description="of each key")


class Usage(BaseModel):
    """What a tenant uses now."""

    stored_bytes: int
    queued_jobs: int
    running_jobs: int


def limits_of(session: Session, settings: Settings, tenant: str) -> TenantLimits:
    """The tenant's own limits, and the settings' where it has none."""
    own: dict[str, Any] = session.scalar(_LIMITS, {"tenant": tenant}) or {}
    return TenantLimits(
        stored_bytes=own.get("stored_bytes", settings.quota_stored_bytes),
        queued_jobs=own.get("queued_jobs", settings.quota_queued_jobs),
        running_jobs=own.get("running_jobs", settings.quota_running_jobs),
        requests_per_minute=own.get("requests_per_minute", settings.requests_per_minute),
    )


def usage_of(session: Session, tenant: str) -> Usage:
    """What the tenant uses now."""
    jobs = select(Job.status, func.count()).where(Job.tenant == tenant, Job.status.not_in(FINAL)).group_by(Job.status)
    counts = {row[0]: row[1] for row in session.execute(jobs)}
    return Usage(
        stored_bytes=stored_bytes(session, tenant),
        queued_jobs=counts.get("queued", 0),
        running_jobs=sum(count for status, count in counts.items() if status in HELD),
    )


def stored_bytes(session: Session, tenant: str) -> int:
    """Bytes of a tenant's models (of one that is uploading: as its manifest says), data sets and artifacts.

    A model that a job made is counted as the job's artifacts, which it consists of.
    """
    models = select(func.sum(Model.size)).where(
        Model.tenant == tenant, Model.deleted_at.is_(None), Model.job_id.is_(None)
    )
    datasets = select(func.sum(_split_bytes())).where(Dataset.tenant == tenant, Dataset.deleted_at.is_(None))
    artifacts = (
        select(func.sum(Artifact.size))
        .join(Job, Job.id == Artifact.job_id)
        .where(Job.tenant == tenant, Job.expired_at.is_(None))
    )
    return sum(int(session.scalar(query) or 0) for query in (models, datasets, artifacts))


def size_of(row: Model | Dataset) -> int:
    """Bytes that a row's files take."""
    return row.size if isinstance(row, Model) else sum(split["size"] for split in row.splits.values())


def _split_bytes() -> ColumnElement[int]:
    total: ColumnElement[int] = func.coalesce(Dataset.splits[(SPLITS[0], "size")].as_integer(), 0)
    for split in SPLITS[1:]:
        total = total + func.coalesce(Dataset.splits[(split, "size")].as_integer(), 0)
    return total


def within_quota(database: Database, settings: Settings, tenant: str, limits: Limits) -> Limits:
    """Bounds of an upload, narrowed to what the tenant may still store: a larger one is refused as soon as it shows."""
    with database.session_scope(read_only=True) as session:
        allowed = limits_of(session, settings, tenant).stored_bytes
        if allowed is None:
            return limits
        used = stored_bytes(session, tenant)
    left = max(0, allowed - used)
    return limits if limits.total <= left else limits.narrowed(left, _too_much(allowed, used))


def check_room(session: Session, settings: Settings, tenant: str, size: int) -> None:
    """Raises `Forbidden` when `size` more bytes are too many; call it in the transaction that adds their row."""
    allowed = limits_of(session, settings, tenant).stored_bytes
    if allowed is None:
        return
    _take_turns(session, tenant)
    used = stored_bytes(session, tenant)
    if used + size > allowed:
        raise _too_much(allowed, used)


def check_queue(session: Session, settings: Settings, tenant: str) -> None:
    """Raises `TooManyRequests` when the queue takes no more jobs of the tenant, `Forbidden` when nothing that one
    makes could be stored; call it in the transaction that adds the job."""
    limits = limits_of(session, settings, tenant)
    if limits.stored_bytes is not None and (used := stored_bytes(session, tenant)) >= limits.stored_bytes:
        raise _too_much(limits.stored_bytes, used)
    if limits.queued_jobs is None:
        return
    _take_turns(session, tenant)
    waiting = select(func.count()).where(Job.tenant == tenant, Job.status == "queued")
    used = session.scalar(waiting) or 0
    if used >= limits.queued_jobs:
        raise TooManyRequests(
            f"The queue takes {limits.queued_jobs} jobs of this tenant; try again when one has started.",
            code="QUOTA_EXCEEDED",
            headers={"Retry-After": str(RETRY_SECONDS)},
            extra=_figures("queued_jobs", limits.queued_jobs, used) | {"retry_after": RETRY_SECONDS},
        )


def _too_much(allowed: int, used: int) -> Forbidden:
    return Forbidden(
        f"This tenant may store {allowed} bytes and stores {used}; delete what is not needed. Nothing was kept.",
        code="QUOTA_EXCEEDED",
        extra=_figures("stored_bytes", allowed, used),
    )


def _figures(quota: str, limit: int, used: int) -> dict[str, str | int]:
    return {"quota": quota, "limit": limit, "used": used}


def _take_turns(session: Session, tenant: str) -> None:
    """Hold off the tenant's other additions until this transaction ends; SQLite lets one writer in anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant, 0))"), {"tenant": tenant})
