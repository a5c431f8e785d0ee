"""The last step of an upload: its bytes are in storage, now the row, in one transaction with the idempotency record."""

import logging
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.auth import Principal
from service.config import Settings
from service.db import Database
from service.deps import remember, replay_or
from service.errors import SecateurError
from service.quotas import check_room, size_of
from service.storage import Storage, all_or_nothing
from service.tables import Dataset, Model

log = logging.getLogger(__name__)

Row = TypeVar("Row", Model, Dataset)


def create(
    database: Database,
    settings: Settings,
    storage: Storage,
    principal: Principal,
    request: Request,
    body_sha256: str,
    row: Row,
    show: Callable[[Row], BaseModel],
) -> Response:
    """Store `row`, whose bytes lie under its prefix, and answer 201; or replay the first answer and drop the bytes.

    Bytes go only when nothing was committed: after a commit whose outcome is unknown they stay.
    """
    with database.session_scope() as session, all_or_nothing(storage, row.prefix):
        replayed = replay_or(session, principal, request, body_sha256)
        if replayed is None:
            check_room(session, settings, principal.tenant, size_of(row))
            session.add(row)
            session.flush()
            body = show(row).model_dump(mode="json")
            headers = {"Location": f"{request.url.path.rstrip('/')}/{row.id}"}
            remember(session, principal, request, body_sha256, 201, headers, body)
    if replayed is not None:
        storage.delete_prefix(row.prefix)
        return replayed
    return JSONResponse(body, 201, headers)


def remove_bytes(storage: Storage, prefix: str) -> None:
    """Delete what lies under a prefix, after the commit that dropped its row: a failure is logged, not answered."""
    try:
        storage.delete_prefix(prefix)
    except (OSError, SecateurError):
        log.exception("The bytes under %s are still there", prefix)
