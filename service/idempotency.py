"""`Idempotency-Key`: the first answer to a creating POST, kept 48 hours and replayed to its repetitions."""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from fastapi import Request, Response
from sqlalchemy import Table, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service import audit
from service.auth import Principal
from service.errors import BadRequest, Conflict, Invalid
from service.tables import IdempotencyRecord, utc_now

HEADER = "Idempotency-Key"
KEPT = timedelta(hours=48)
_PENDING = 0
_LOCK_NOT_AVAILABLE = "55P03"

# Built once, of the table itself: the mapped class would cost more than the statements.
_RECORDS = cast(Table, IdempotencyRecord.__table__)
_RESERVE = {
    "postgresql": postgresql.insert(_RECORDS).on_conflict_do_nothing().returning(_RECORDS.c.key),
    "sqlite": sqlite.insert(_RECORDS).on_conflict_do_nothing().returning(_RECORDS.c.key),
}
_KEEP = update(_RECORDS).where(
    _RECORDS.c.tenant == bindparam("of_tenant"),
    _RECORDS.c.route == bindparam("of_route"),
    _RECORDS.c.key == bindparam("of_key"),
)


def replay_or(session: Session, principal: Principal, request: Request, body_sha256: str) -> Response | None:
    """Reserve the request's key within the creating transaction, or give the answer of the first request.

    None: go on, and call `remember` before the transaction ends. A repetition that comes while the first is still in
    its transaction waits for it. Raises `Invalid` when the key came with another body, `Conflict` when waiting takes
    too long.
    """
    identity = _identity(principal, request)
    if identity is None:
        return None
    digest = _digest(request, body_sha256)
    if _reserve(session, identity, digest):
        return None
    record = session.get_one(IdempotencyRecord, identity)
    if record.body_sha256 != digest:
        raise Invalid("This Idempotency-Key came before with another request.", code="IDEMPOTENCY_KEY_REUSED")
    headers = {**record.headers, "Idempotency-Replayed": "true"}
    return Response(record.body["json"].encode(), record.status, headers, "application/json")


def remember(
    session: Session,
    principal: Principal,
    request: Request,
    body_sha256: str,
    status: int,
    headers: Mapping[str, str],
    body: dict[str, Any],
) -> str:
    """Store the answer under the key that `replay_or` reserved; nothing without a key. The log gets what it made.

    Returns the body as the text that repetitions get.
    """
    audit.made(session, body["id"])
    # Kept as text: a database that reorders names would replay other bytes than the first answer's.
    told = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    identity = _identity(principal, request)
    if identity is not None:
        tenant, route, key = identity
        first = {"body_sha256": _digest(request, body_sha256), "status": status, "headers": dict(headers)}
        own = {"of_tenant": tenant, "of_route": route, "of_key": key}
        session.execute(_KEEP, {**own, **first, "body": {"json": told}})
    return told


def secret_not_kept(replayed: Response, name: str, remedy: str) -> Conflict:
    """What a repetition gets where the first answer showed a secret, which is not kept; `name` is that of the id."""
    made = json.loads(bytes(replayed.body))["id"]
    detail = f"The first request answered for {made} with a secret that cannot be shown again. {remedy}"
    return Conflict(detail, code="IDEMPOTENCY_SECRET_NOT_KEPT", extra={name: made})


def expire(session: Session) -> None:
    """Forget answers older than 48 hours."""
    session.execute(delete(IdempotencyRecord).where(IdempotencyRecord.created_at < utc_now() - KEPT))


def _identity(principal: Principal, request: Request) -> tuple[str, str, str] | None:
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise BadRequest(f"{HEADER} holds 1 to 255 printable ASCII characters.", code="IDEMPOTENCY_KEY_INVALID")
    return principal.tenant, f"{request.method} {request.url.path}"[:200], key


def _digest(request: Request, body_sha256: str) -> str:
    return hashlib.sha256(f"{body_sha256}?{request.url.query}".encode()).hexdigest()


def _reserve(session: Session, identity: tuple[str, str, str], digest: str) -> bool:
    tenant, route, key = identity
    values = {
        "tenant": tenant,
        "route": route,
        "key": key,
        "body_sha256": digest,
        "status": _PENDING,
        "headers": {},
        "body": {},
        "created_at": utc_now(),
    }
    try:
        return session.execute(_RESERVE[session.get_bind().dialect.name], values).scalar() is not None
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise Conflict("The first request with this key is still running.", code="IDEMPOTENCY_IN_FLIGHT") from error
        raise
