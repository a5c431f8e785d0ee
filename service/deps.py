"""What routes ask for: a transaction, who is asking, the JSON body, and where things are."""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from sqlalchemy.orm import Session

from service.auth import Principal, Scope, authenticate
from service.broker import Broker
from service.config import Settings
from service.db import Database
from service.errors import BadRequest, Forbidden, PayloadTooLarge, UnsupportedMediaType
from service.idempotency import remember, replay_or
from service.storage import Storage

__all__ = [
    "Admin",
    "BrokerDep",
    "DatabaseDep",
    "JsonBody",
    "RawJson",
    "Reader",
    "SessionDep",
    "SettingsDep",
    "StorageDep",
    "Writer",
    "parse_json",
    "remember",
    "replay_or",
    "require",
]

MAX_DEPTH = 32
"""Nesting of a JSON body; a job spec has 6 levels."""


def get_settings_of(request: Request) -> Settings:
    """The settings that the app was made with."""
    return request.app.state.settings  # type: ignore[no-any-return]


def get_database(request: Request) -> Database:
    """For routes that open their transactions themselves, because they stream or wait."""
    return request.app.state.database  # type: ignore[no-any-return]


def get_storage(request: Request) -> Storage:
    """Where the bytes lie."""
    return request.app.state.storage  # type: ignore[no-any-return]


def get_broker(request: Request) -> Broker:
    """The doorbell."""
    return request.app.state.broker  # type: ignore[no-any-return]


def get_session(request: Request) -> Iterator[Session]:
    """One transaction per request, ended before the answer is sent; GET and HEAD only read."""
    database: Database = request.app.state.database
    with database.session_scope(read_only=request.method in ("GET", "HEAD")) as session:
        yield session


SettingsDep = Annotated[Settings, Depends(get_settings_of)]
DatabaseDep = Annotated[Database, Depends(get_database)]
StorageDep = Annotated[Storage, Depends(get_storage)]
BrokerDep = Annotated[Broker, Depends(get_broker)]
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


class Require(SecurityBase):
    """Dependency that authenticates a request and demands a scope; every route but the public ones has one."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "ApiKey"
        self.model = HTTPBearerModel(bearerFormat="sct_…", description="an API key of the service")

    def __call__(self, request: Request) -> Principal:
        """Raises `Unauthorized` or `Forbidden`."""
        with request.app.state.database.session_scope(read_only=True) as session:
            principal = authenticate(session, request.headers.get("authorization"))
        if self.scope not in principal.scopes:
            raise Forbidden(f"This key lacks the scope {self.scope}.", code="SCOPE_MISSING")
        request.app.state.key_use.note(principal.key_id)
        return principal


def require(scope: Scope) -> Require:
    """The dependency for one scope: `principal: Annotated[Principal, Depends(require("read"))]`."""
    return Require(scope)


Reader = Annotated[Principal, Depends(require("read"))]
Writer = Annotated[Principal, Depends(require("write"))]
Admin = Annotated[Principal, Depends(require("admin"))]


async def read_json(request: Request) -> Any:
    """The body as JSON, at most `max_json_bytes` of UTF-8, without duplicate names, NaN, infinity or deep nesting."""
    return parse_json(await read_body(request))


async def read_body(request: Request) -> bytes:
    """The raw JSON body. Raises `UnsupportedMediaType` and `PayloadTooLarge`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType("Send the body as application/json.")
    limit = request.app.state.settings.max_json_bytes
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise PayloadTooLarge(f"A JSON body holds at most {limit} bytes.")
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Strict JSON (RFC 8259, I-JSON's unique names). Raises `BadRequest` with the code MALFORMED_JSON."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(
            f"The body is not JSON as RFC 8259 has it{where}: no duplicate names, NaN or infinite numbers.",
            code="MALFORMED_JSON",
        ) from error
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate name")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise BadRequest(f"The body is nested more than {MAX_DEPTH} levels deep.", code="MALFORMED_JSON")


JsonBody = Annotated[Any, Depends(read_json)]
RawJson = Annotated[bytes, Depends(read_body)]
