"""What a run has left: the rows that matter to a judge, every stored file with its digest, every webhook that came."""

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Session

from service import checkpoints
from service.config import Settings
from service.db import Database
from service.intake import orphans
from service.storage import Storage, open_storage
from service.tables import (
    Artifact,
    Attempt,
    AuditEntry,
    Dataset,
    Event,
    Job,
    MetricPoint,
    Model,
    WebhookDelivery,
    WebhookEndpoint,
)
from tests.service.webhooks.receiver import Received

State: TypeAlias = dict[str, Any]
FILE = "state.json"
_PIECE = 1 << 20

_COLUMNS: dict[str, tuple[type[DeclarativeBase], tuple[str, ...]]] = {
    "jobs": (
        Job,
        ("id", "tenant", "status", "token", "attempts", "version", "metadata_", "model_id", "dataset_id", "checkpoint",
         "configuration", "webhook_url", "result", "error", "finished_at"),
    ),
    "attempts": (Attempt, ("job_id", "token", "started_at", "finished_at", "outcome")),
    "events": (Event, ("id", "job_id", "time", "type", "data")),
    "artifacts": (Artifact, ("id", "job_id", "tenant", "path", "key", "size", "sha256")),
    "models": (Model, ("id", "tenant", "state", "job_id", "prefix", "files", "archive_sha256", "deleted_at")),
    "datasets": (Dataset, ("id", "tenant", "prefix", "splits", "deleted_at")),
    "endpoints": (WebhookEndpoint, ("id", "tenant", "url", "events", "enabled")),
    "deliveries": (
        WebhookDelivery,
        ("id", "tenant", "endpoint_id", "event_id", "job_id", "type", "url", "status", "attempts", "due_at"),
    ),
    "audit": (AuditEntry, ("id", "tenant", "action", "target")),
}  # fmt: skip


def sweep(settings: Settings, database: Database) -> None:
    """Remove what nobody owns, as the service itself does once it is old enough."""
    storage = open_storage(settings.storage)
    for remove in (orphans.sweep, orphans.sweep_artifacts, checkpoints.sweep):
        remove(database, storage, 0)


def read_state(settings: Settings, database: Database, received: Iterable[Received]) -> State:
    """All of it, as JSON can hold it."""
    with database.session_scope(read_only=True) as session:
        state: State = {name: _rows(session, *of) for name, of in _COLUMNS.items()}
        state["points"] = _points(session)
        state["database_time"] = session.scalar(select(func.extract("epoch", func.now())))
    storage = open_storage(settings.storage)
    state["stored"] = {key: _file(storage, key) for root in ("artifacts", "checkpoints", "models", "datasets")
                       for key in storage.list(root)}  # fmt: skip
    state["received"] = [_webhook(one) for one in list(received)]
    return state


def _rows(session: Session, table: type[DeclarativeBase], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    chosen = [getattr(table, name) for name in columns]
    order = [column for column in chosen if column.key in ("id", "job_id", "token")]
    rows = session.execute(select(*chosen).order_by(*order))
    return [{name.rstrip("_"): value for name, value in zip(columns, row, strict=True)} for row in rows]


def _points(session: Session) -> list[dict[str, Any]]:
    """When the first and the last point of each attempt's curves were stored."""
    points = select(MetricPoint.job_id, MetricPoint.token, func.min(MetricPoint.time), func.max(MetricPoint.time))
    rows = session.execute(points.group_by(MetricPoint.job_id, MetricPoint.token))
    return [dict(zip(("job_id", "token", "first", "last"), row, strict=True)) for row in rows]


def _file(storage: Storage, key: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with storage.open(key) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return {"size": size, "sha256": digest.hexdigest()}


def _webhook(one: Received) -> dict[str, Any]:
    body = json.loads(one.body)
    return {
        "path": one.path,
        "event_id": one.event_id,
        "status": one.status,
        "sha256": hashlib.sha256(one.body).hexdigest(),
        "type": body["type"],
        "job_id": body["data"].get("id"),
    }


def write(state: State, folder: Path) -> None:
    """Leave it in a folder, for a judge who comes later."""
    (folder / FILE).write_text(json.dumps(state, default=_plain))


def read(folder: Path) -> State:
    """What a run has left there."""
    state: State = json.loads((folder / FILE).read_text())
    return state


def plain(state: State) -> State:
    """As it is read back: times are seconds since 1970."""
    back: State = json.loads(json.dumps(state, default=_plain))
    return back


def _plain(value: Any) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value)
