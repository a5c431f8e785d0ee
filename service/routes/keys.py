"""API keys of the caller's tenant."""

import functools
import hashlib
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audit import unchanged
from service.auth import issue_key, live_admin_keys
from service.db import on_commit
from service.deps import Admin, RawJson, SessionDep, parse_json, remember, replay_or
from service.errors import Conflict, NotFound, invalid
from service.idempotency import secret_not_kept
from service.openapi import json_body
from service.paging import Cursor, Limit, newest_first
from service.problems import invalid_body, responses
from service.schemas import CreatedKey, KeyView, NewKey, Page
from service.tables import ApiKey, utc_now

router = APIRouter(prefix="/v1/keys", tags=["keys"])

ANSWER_LOST = "Where that answer was lost, delete the key and create another one under a new Idempotency-Key."


@router.post(
    "",
    status_code=201,
    summary="Create an API key",
    response_model=CreatedKey,
    responses=responses(400, 409, 413, 415, 422),
    openapi_extra=json_body(NewKey),
)
def create_key(principal: Admin, body: RawJson, session: SessionDep, request: Request, response: Response) -> Any:
    """The key itself is in this answer only, and is not kept: a repetition under the same Idempotency-Key is 409 and
    names the key that was made. Only `admin` makes keys, so that no key grants a scope that it lacks."""
    order = _order(parse_json(body))
    digest = hashlib.sha256(body).hexdigest()
    if (replayed := replay_or(session, principal, request, digest)) is not None:
        raise secret_not_kept(replayed, "key_id", ANSWER_LOST)
    row, plaintext = issue_key(
        session, tenant=principal.tenant, name=order.name, scopes=order.scopes, expires_at=_expiry(order)
    )
    created = CreatedKey(**key_view(row).model_dump(), key=plaintext)
    remember(session, principal, request, digest, 201, {}, key_view(row).model_dump(mode="json"))
    return created


def _order(value: Any) -> NewKey:
    try:
        order = NewKey.model_validate(value)
    except ValidationError as error:
        raise invalid_body(error, value) from error
    if order.expires_at is not None and order.expires_at <= utc_now():
        raise invalid("/expires_at", "Give a time to come.", "INVALID_BODY")
    if order.expires_at is not None and order.expires_in is not None:
        raise invalid("/expires_in", "Give expires_at or expires_in, not both.", "INVALID_BODY")
    return order


def _expiry(order: NewKey) -> datetime | None:
    if order.expires_in is not None:
        return utc_now() + timedelta(seconds=order.expires_in)
    return order.expires_at


@router.get("", summary="List API keys", response_model=Page[KeyView], responses=responses(422))
def list_keys(principal: Admin, session: SessionDep, limit: Limit = 20, cursor: Cursor = None) -> Any:
    """Revoked keys stay in the list; secrets are never shown."""
    query = select(ApiKey).where(ApiKey.tenant == principal.tenant)
    rows, next_cursor = newest_first(session, query, ApiKey.id, limit, cursor)
    return Page[KeyView](data=[key_view(row) for row in rows], next_cursor=next_cursor)


@router.delete("/{key_id}", status_code=204, summary="Revoke an API key", responses=responses(404, 409))
def delete_key(principal: Admin, session: SessionDep, key_id: str, request: Request) -> None:
    """The key stops working within a second; repeating it changes nothing. A tenant's last live admin key stays."""
    row = _owned(session, principal.tenant, key_id)
    if row.revoked_at is not None:
        unchanged(session)
        return
    if live_admin_keys(session, principal.tenant) == [row.id]:
        raise Conflict("This is the last admin key; create another one first.", code="LAST_ADMIN_KEY")
    row.revoked_at = utc_now()
    on_commit(session, functools.partial(request.app.state.callers.forget, key_id))


def _owned(session: Session, tenant: str, key_id: str) -> ApiKey:
    row = session.scalar(select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant == tenant))
    if row is None:
        raise NotFound("There is no such key.")
    return row


def key_view(row: ApiKey) -> KeyView:
    """The public face of a key."""
    return KeyView(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
