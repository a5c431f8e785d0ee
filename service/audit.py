"""The audit log: who changed what the service holds, written in the transaction that changes it.

One hook at the end of a request's transaction does it for every route that `ACTIONS` names. An entry holds ids and
names of actions alone: no bodies, no secrets.
"""

from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request
from sqlalchemy import Table, insert
from sqlalchemy.orm import Session

from service.auth import Principal
from service.ids import new_id
from service.tables import AuditEntry

COMMAND_LINE = "command-line"
"""Stands for the key where someone with access to the database itself changed something."""

_INSERT = insert(cast(Table, AuditEntry.__table__))
_MADE, _UNCHANGED = "audit_made", "audit_unchanged"


@dataclass(frozen=True)
class Action:
    """What a route does: `target` is the path parameter that names what it does it to, null: what the request makes.

    A request that makes nothing, because it repeats an earlier one or only asks, leaves no entry.
    """

    name: str
    target: str | None = None


_MODEL, _JOB, _ENDPOINT = "/v1/models", "/v1/jobs", "/v1/webhook_endpoints"

ACTIONS: dict[tuple[str, str], Action] = {
    ("POST", _MODEL): Action("model.create"),
    ("POST", f"{_MODEL}/{{model_id}}/complete"): Action("model.complete", "model_id"),
    ("DELETE", f"{_MODEL}/{{model_id}}"): Action("model.delete", "model_id"),
    ("DELETE", "/v1/uploads/{upload_id}"): Action("upload.abort", "upload_id"),
    ("POST", f"{_MODEL}/{{model_id}}/inspections"): Action("inspection.create"),
    ("POST", "/v1/datasets"): Action("dataset.create"),
    ("DELETE", "/v1/datasets/{dataset_id}"): Action("dataset.delete", "dataset_id"),
    ("POST", _JOB): Action("job.create"),
    ("POST", f"{_JOB}/{{job_id}}/cancel"): Action("job.cancel", "job_id"),
    ("POST", f"{_JOB}/{{job_id}}/pause"): Action("job.pause", "job_id"),
    ("POST", f"{_JOB}/{{job_id}}/resume"): Action("job.resume", "job_id"),
    ("POST", f"{_JOB}/{{job_id}}/retry"): Action("job.retry", "job_id"),
    ("POST", f"{_JOB}/{{job_id}}/clone"): Action("job.clone"),
    ("DELETE", f"{_JOB}/{{job_id}}"): Action("job.delete", "job_id"),
    ("POST", "/v1/keys"): Action("key.create"),
    ("DELETE", "/v1/keys/{key_id}"): Action("key.delete", "key_id"),
    ("POST", _ENDPOINT): Action("webhook_endpoint.create"),
    ("PATCH", f"{_ENDPOINT}/{{endpoint_id}}"): Action("webhook_endpoint.update", "endpoint_id"),
    ("DELETE", f"{_ENDPOINT}/{{endpoint_id}}"): Action("webhook_endpoint.delete", "endpoint_id"),
    ("POST", f"{_ENDPOINT}/{{endpoint_id}}/rotate_secret"): Action("webhook_endpoint.rotate_secret"),
    ("POST", f"{_ENDPOINT}/{{endpoint_id}}/test"): Action("webhook_endpoint.test"),
    ("POST", f"{_ENDPOINT}/{{endpoint_id}}/deliveries/{{delivery_id}}/redeliver"): Action(
        "webhook_endpoint.redeliver", "delivery_id"
    ),
}
UNAUDITED: frozenset[tuple[str, str]] = frozenset(
    {
        ("PATCH", "/v1/uploads/{upload_id}"),  # one of many chunks; that the model is complete is what counts
        ("POST", f"{_MODEL}/{{model_id}}/uploads"),  # tells the address of an upload that is there already
        ("POST", f"{_JOB}:estimate"),  # stores nothing
    }
)
"""Routes that are no GET and still leave no entry, each with its reason."""


def made(session: Session, target: str) -> None:
    """This transaction makes the thing of that id."""
    session.info[_MADE] = target


def unchanged(session: Session) -> None:
    """This transaction repeats what was done before: it leaves no entry."""
    session.info[_UNCHANGED] = True


def record(
    session: Session,
    *,
    tenant: str,
    key_id: str,
    action: str,
    target: str | None,
    request_id: str = "",
    data: dict[str, Any] | None = None,
) -> None:
    """Write one entry."""
    entry = {
        "id": new_id("aud"),
        "tenant": tenant,
        "key_id": key_id,
        "action": action,
        "target": target,
        "request_id": request_id,
        "data": data or {},
    }
    session.execute(_INSERT, entry)


def record_request(session: Session, request: Request, principal: Principal) -> None:
    """Write the entry of a request whose transaction is about to be committed, if it changes anything."""
    action = ACTIONS.get((request.method, request.scope["route"].path))
    if action is None or session.info.get(_UNCHANGED):
        return
    named = {name: str(value) for name, value in request.path_params.items()}
    target = session.info.get(_MADE) if action.target is None else named.pop(action.target)
    if target is None:
        return
    record(
        session,
        tenant=principal.tenant,
        key_id=principal.key_id,
        action=action.name,
        target=target,
        request_id=request.scope["secateur_request_id"],
        data=named,
    )
