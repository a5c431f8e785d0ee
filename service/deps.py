"""What routes ask for: a transaction, who is asking, the JSON body, and where things are."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import logs
from service.audit import record_request
from service.auth import Principal, Scope, authenticate
from service.broker import Broker
from service.callers import Caller, Callers
from service.config import Settings
from service.db import Database
from service.errors import BadRequest, Forbidden, PayloadTooLarge, Unauthorized, UnsupportedMediaType
from service.idempotency import remember, replay_or
from service.intake import strict_json
from service.rates import HEADERS, Rates, Taken, too_many
from service.storage import Storage
from service.webhooks.addresses import Addresses

__all__ = [
    "AddressesDep",
    "Admin",
    "BrokerDep",
    "DatabaseDep",
    "RawJson",
    "Reader",
    "SessionDep",
    "SettingsDep",
    "StorageDep",
    "Writer",
    "parse_json",
    "read_body",
    "remember",
    "replay_or",
    "require",
]

_PRINCIPAL = "secateur_principal"
_READING = frozenset({"GET", "HEAD"})


# Plain look-ups are coroutines: FastAPI would send a plain function to a thread, which costs more than the look-up.
async def get_settings_of(request: Request) -> Settings:
    """The settings that the app was made with."""
    settings: Settings = request.app.state.settings
    return settings


async def get_database(request: Request) -> Database:
    """For routes that open their transactions themselves, because they stream or wait."""
    return _database_of(request)


def _database_of(request: Request) -> Database:
    """The database; what a request other than GET and HEAD writes ends with its entry in the audit log."""
    database: Database = request.app.state.database
    if request.method in _READING:
        return database
    return database.ending_with(lambda session: record_request(session, request, request.scope[_PRINCIPAL]))


async def get_storage(request: Request) -> Storage:
    """Where the bytes lie."""
    storage: Storage = request.app.state.storage
    return storage


async def get_broker(request: Request) -> Broker:
    """The doorbell."""
    broker: Broker = request.app.state.broker
    return broker


def get_session(request: Request) -> Iterator[Session]:
    """One transaction per request, ended before the answer is sent; GET and HEAD only read."""
    with _database_of(request).session_scope(read_only=request.method in _READING) as session:
        yield session


async def get_addresses(request: Request) -> Addresses:
    """What a webhook may be sent to."""
    addresses: Addresses = request.app.state.addresses
    return addresses


SettingsDep = Annotated[Settings, Depends(get_settings_of)]
DatabaseDep = Annotated[Database, Depends(get_database)]
StorageDep = Annotated[Storage, Depends(get_storage)]
BrokerDep = Annotated[Broker, Depends(get_broker)]
AddressesDep = Annotated[Addresses, Depends(get_addresses)]
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


class Require(SecurityBase):
    """Dependency that authenticates a request and demands a scope; every route but the public ones has one."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "ApiKey"
        self.model = HTTPBearerModel(bearerFormat="sct_…", description="an API key of the service")

    async def __call__(self, request: Request) -> Principal:
        """Raises `Unauthorized`, `Forbidden` or `TooManyRequests`."""
        state = request.app.state
        given = request.headers.get("authorization")
        caller = state.callers.known(given or "") or await run_in_threadpool(_look_up, request, given)
        principal: Principal = caller.principal
        if caller.limit is not None:
            _spend(request, state.rates.take(principal.key_id, caller.limit))
        request.scope[_PRINCIPAL] = principal
        logs.note(tenant=principal.tenant, key_id=principal.key_id)
        if self.scope not in principal.scopes:
            raise Forbidden(f"This key lacks the scope {self.scope}.", code="SCOPE_MISSING")
        state.key_use.note(principal.key_id)
        return principal


def _look_up(request: Request, given: str | None) -> Caller:
    rates: Rates = request.app.state.rates
    callers: Callers = request.app.state.callers
    try:
        with request.app.state.database.session_scope(read_only=True) as session:
            principal = authenticate(session, given)
            caller = Caller(principal, rates.limit_of(session, principal.tenant))
    except Unauthorized:
        if given is not None and request.client is not None:
            rates.note_failure(request.client.host)
        raise
    callers.keep(given or "", caller)
    return caller


def _spend(request: Request, taken: Taken) -> None:
    request.scope[HEADERS] = taken.headers()
    if taken.wait is not None:
        detail = f"This key may ask {taken.quota} times a minute; wait as long as Retry-After says."
        raise too_many(detail, "RATE_LIMITED", taken.wait)


def require(scope: Scope) -> Require:
    """The dependency for one scope: `principal: Annotated[Principal, Depends(require("read"))]`."""
    return Require(scope)


Reader = Annotated[Principal, Depends(require("read"))]
Writer = Annotated[Principal, Depends(require("write"))]
Admin = Annotated[Principal, Depends(require("admin"))]


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
    """Strict JSON. Raises `BadRequest` with the code MALFORMED_JSON."""
    try:
        return strict_json.loads(body)
    except strict_json.JsonRefused as error:
        raise BadRequest(f"The body {error}.", code="MALFORMED_JSON") from error


RawJson = Annotated[bytes, Depends(read_body)]
