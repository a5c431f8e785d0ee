"""SQLAlchemy tables: columns and relations, no behaviour."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, Float, ForeignKey, Index, MetaData, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import BigInteger, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time; SQLite, which has no zones, stores it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware time."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def utc_now() -> datetime:
    """The current time, aware."""
    return datetime.now(UTC)


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can find them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UtcDateTime, dict[str, Any]: Json, list[Any]: Json, int: BigInteger}


class ApiKey(Base):
    """A tenant's key; only the hash of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Tenant(Base):
    """What one tenant may use, where it differs from the settings; a tenant without a row has the settings' limits."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    limits: Mapped[dict[str, Any]]
    """Any of `stored_bytes`, `queued_jobs`, `running_jobs`, `requests_per_minute`."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class AuditEntry(Base):
    """Something that a key did which changed what the service holds; never changed, never deleted by the API."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    time: Mapped[datetime] = mapped_column(default=utc_now)
    key_id: Mapped[str] = mapped_column(String(40))
    action: Mapped[str] = mapped_column(String(60))
    target: Mapped[str | None] = mapped_column(String(40))
    request_id: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Model(Base):
    """A model that a client uploaded or a job made; its bytes lie in storage under `prefix`."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20))
    family: Mapped[str] = mapped_column(String(50))
    architecture: Mapped[str] = mapped_column(String(100))
    task: Mapped[str | None] = mapped_column(String(50))
    parameters: Mapped[int]
    size: Mapped[int]
    dtype: Mapped[str] = mapped_column(String(20))
    files: Mapped[list[Any]]
    """`[{"path", "size", "sha256"}]`, in the order in which they stand in the archive."""
    structure: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    """What the door needs for later checks: `labels`, `multi_label`, `max_length` (null: unknown), `has_head`,
    `has_tokenizer`, `uniform`; of an invalid model its `problem`; of an unfinished one nothing."""
    prefix: Mapped[str] = mapped_column(String(300))
    archive_size: Mapped[int]
    archive_sha256: Mapped[str] = mapped_column(String(64))
    parent_model_id: Mapped[str | None] = mapped_column(String(40), index=True)
    job_id: Mapped[str | None] = mapped_column(String(40))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    deleted_at: Mapped[datetime | None]


class Upload(Base):
    """One file of a model in the state `uploading`; how much of it is here, the length of its partial file tells."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    tenant: Mapped[str] = mapped_column(String(100))
    position: Mapped[int]
    """Where the file stands in the manifest."""
    path: Mapped[str] = mapped_column(String(1024))
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime] = mapped_column(index=True)
    """The model is dropped when the last of its files has expired."""


class Dataset(Base):
    """Rows for one task; each split is one JSONL file in storage under `prefix`."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(200))
    task: Mapped[str] = mapped_column(String(50))
    splits: Mapped[dict[str, Any]]
    """`{"train": {"rows", "size", "sha256"}, …}`."""
    labels: Mapped[dict[str, Any] | None]
    """What the rows agree on, as their task has it: `names` or `integers` (the highest) of labels, `pairs`,
    `multi_label`, `scores`; null where it is nothing."""
    prefix: Mapped[str] = mapped_column(String(300))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    deleted_at: Mapped[datetime | None]


class Job(Base):
    """One queued compression or inspection. `status` is written by `service.jobs` alone."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant", "id"),
        Index(None, "status", "lease_until"),
        Index(None, "status", "tenant", "priority", "id"),
        Index(None, "tenant", "started_at"),
        Index(None, "tenant", "fingerprint"),
        Index(None, "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(20), default="compression", server_default="compression")
    name: Mapped[str] = mapped_column(String(200))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    spec: Mapped[dict[str, Any]]
    configuration: Mapped[dict[str, Any]]
    priority: Mapped[int]
    status: Mapped[str] = mapped_column(String(20))
    version: Mapped[int] = mapped_column(default=1)
    """Grows with every visible change: the ETag."""
    phase: Mapped[str | None] = mapped_column(String(20))
    progress: Mapped[dict[str, Any]]
    warnings: Mapped[list[Any]]
    advice: Mapped[list[Any]] = mapped_column(default=list)
    """Warnings of the door, shown before the engine's; they outlive every attempt."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Starts that count towards the limit; an orderly hand-back is taken off again."""
    token: Mapped[int] = mapped_column(default=0)
    """Fencing token: grows with every claim; a write that carries an older one hits no row."""
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None] = mapped_column(Float(53))
    """Seconds since 1970 by the database's clock."""
    not_before: Mapped[float | None] = mapped_column(Float(53))
    checkpoint: Mapped[dict[str, Any] | None]
    """From where the next attempt goes on: `{"key", "files": [{"path", "size", "sha256"}], "step", "token", "before"}`;
    `before` is the same of the checkpoint before it, null or absent where there is none."""
    batch_divisor: Mapped[int] = mapped_column(default=1, server_default="1")
    """Doubles with every attempt that ran out of memory: batches of the next one are so many times smaller."""
    cloned_from: Mapped[str | None] = mapped_column(String(40))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the resolved order and of the bytes it works on: equal for jobs that give the same result."""
    request_id: Mapped[str | None] = mapped_column(String(64))
    """Of the request that made the job, so that logs of workers can be told apart by it."""
    webhook_url: Mapped[str | None] = mapped_column(String(2048))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """When the bytes of its artifacts and of its model go; the rows stay."""
    expired_at: Mapped[datetime | None]


class Attempt(Base):
    """One claim of a job by a worker, and how it ended."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    token: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(40))


class Event(Base):
    """Something worth telling about a job, in order of its id."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    time: Mapped[datetime] = mapped_column(default=utc_now)
    level: Mapped[str] = mapped_column(String(10))
    type: Mapped[str] = mapped_column(String(60))
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class MetricPoint(Base):
    """One point of a training curve; a value that is not finite is null and flagged."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    token: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[datetime] = mapped_column(default=utc_now)
    value: Mapped[float | None] = mapped_column(Float(53))


class Artifact(Base):
    """One file that a job made; `key` is where it lies in storage."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "path"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tenant: Mapped[str] = mapped_column(String(100))
    path: Mapped[str] = mapped_column(String(500))
    kind: Mapped[str] = mapped_column(String(40))
    media_type: Mapped[str] = mapped_column(String(100))
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(600))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class IdempotencyRecord(Base):
    """The first answer to a creating POST, stored in the transaction that made the thing itself."""

    __tablename__ = "idempotency_records"

    tenant: Mapped[str] = mapped_column(String(100), primary_key=True)
    route: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class Worker(Base):
    """A worker process that beats; it is alive while `seen_until` lies ahead."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    devices: Mapped[list[Any]]
    sandbox: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    seen_until: Mapped[float] = mapped_column(Float(53))


class WebhookEndpoint(Base):
    """Where a tenant wants to be told; of those without a URL a tenant has one, for the `webhook_url` of its jobs."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index(None, "tenant", "id"),
        Index(
            "uq_webhook_endpoints_without_url",
            "tenant",
            unique=True,
            postgresql_where=text("url IS NULL"),
            sqlite_where=text("url IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    url: Mapped[str | None] = mapped_column(String(2048))
    description: Mapped[str] = mapped_column(String(256), default="")
    events: Mapped[list[Any]]
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None] = mapped_column(String(20))
    failing_since: Mapped[datetime | None]
    """Of the first failed try after the last success."""
    secrets: Mapped[list[Any]]
    """`[{"secret", "until"}]`, newest first; until is null of the one that is not being replaced."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class WebhookDelivery(Base):
    """One event on its way to one endpoint."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (UniqueConstraint("endpoint_id", "event_id"), Index(None, "status", "due_at"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(100))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(40))
    """The `webhook-id`: the same for every endpoint and every try."""
    job_id: Mapped[str | None] = mapped_column(String(40))
    type: Mapped[str] = mapped_column(String(60))
    url: Mapped[str | None] = mapped_column(String(2048))
    """The job's own `webhook_url`; null: the endpoint's."""
    data: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(20))
    attempts: Mapped[int] = mapped_column(default=0)
    """Grows with every claim; a write that names an older one hits no row."""
    tries: Mapped[int] = mapped_column(default=0)
    """Those of the present schedule, which starts anew with every redelivery."""
    leased: Mapped[bool] = mapped_column(default=False)
    due_at: Mapped[float] = mapped_column(Float(53))
    """Seconds since 1970 by the database's clock: the next try, or while one runs the end of its lease."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    finished_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One try of a delivery; without seconds: it is running, or its process died."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    seconds: Mapped[float | None] = mapped_column(Float(53))
    response_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(40))
