"""API keys: made, checked, never stored. A key is `sct_<id>_<secret>_<crc32>`; the table holds its SHA-256."""

import hashlib
import hmac
import re
import secrets
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from service.errors import Unauthorized
from service.ids import new_id
from service.tables import ApiKey, utc_now

Scope: TypeAlias = Literal["read", "write", "admin"]
DEFAULT_TENANT = "default"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_IMPLIED: dict[str, frozenset[str]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write"}),
    "admin": frozenset({"read", "write", "admin"}),
}
_KEY = re.compile(r"sct_([0-9A-HJKMNP-TV-Z]{26})_([0-9a-f]{64})_([0-9a-f]{8})")
_USE_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """Who asks: the tenant whose data they see, the key they showed and what it allows."""

    tenant: str
    key_id: str
    scopes: frozenset[str]


def new_plaintext() -> str:
    """A fresh key with 256 bits of chance, not yet known to any database."""
    body = f"{new_id('sct')}_{secrets.token_hex(32)}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def parse(plaintext: str) -> str | None:
    """The row id that a well-formed key names, None when it is malformed or mistyped."""
    match = _KEY.fullmatch(plaintext)
    if match is None or zlib.crc32(plaintext.rpartition("_")[0].encode()) != int(match[3], 16):
        return None
    return f"key_{match[1]}"


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _row(
    plaintext: str, key_id: str, tenant: str, name: str, scopes: Iterable[str], expires_at: datetime | None
) -> ApiKey:
    return ApiKey(
        id=key_id,
        tenant=tenant,
        name=name,
        secret_sha256=_digest(plaintext),
        scopes=sorted(scopes),
        expires_at=expires_at,
    )


def issue_key(
    session: Session, *, tenant: str, name: str, scopes: Iterable[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Store a new key; returns its row and, this once, the key itself."""
    plaintext = new_plaintext()
    key_id = parse(plaintext)
    assert key_id is not None
    row = _row(plaintext, key_id, tenant, name, scopes, expires_at)
    session.add(row)
    session.flush()
    return row, plaintext


def install_admin_key(session: Session, plaintext: str) -> None:
    """Store a key that the operator chose, unless its id is already known (a revoked one stays revoked).

    Raises `ValueError` when it is not a well-formed key.
    """
    key_id = parse(plaintext)
    if key_id is None:
        raise ValueError("the admin key is malformed; make one with `secateur keys create`")
    if session.get(ApiKey, key_id) is None:
        session.add(_row(plaintext, key_id, DEFAULT_TENANT, "admin", ["admin"], None))
        session.flush()


def authenticate(session: Session, header: str | None) -> Principal:
    """Who an `Authorization` header speaks for. Raises `Unauthorized`, the same for every cause but a missing key."""
    scheme, _, plaintext = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("Send your key as `Authorization: Bearer sct_…`.")
    key_id = parse(plaintext.strip())
    row = session.get(ApiKey, key_id) if key_id else None
    known = row.secret_sha256 if row else _digest("")
    if not hmac.compare_digest(known, _digest(plaintext.strip())) or row is None:
        raise _unauthorized("The key is unknown, revoked or expired.")
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= utc_now()):
        raise _unauthorized("The key is unknown, revoked or expired.")
    return Principal(row.tenant, row.id, frozenset().union(*(_IMPLIED.get(scope, ()) for scope in row.scopes)))


def _unauthorized(detail: str) -> Unauthorized:
    return Unauthorized(detail, headers={"WWW-Authenticate": 'Bearer realm="secateur"'})


def has_live_key(session: Session) -> bool:
    """Whether anyone could authenticate."""
    return session.scalar(select(ApiKey.id).where(*_live()).limit(1)) is not None


def live_admin_keys(session: Session, tenant: str) -> list[str]:
    """Ids of the tenant's admin keys that work now, locked: two that are deleted at once must not both go."""
    live = select(ApiKey).where(ApiKey.tenant == tenant, *_live()).order_by(ApiKey.id).with_for_update()
    rows = session.scalars(live.execution_options(populate_existing=True))
    return [row.id for row in rows if "admin" in row.scopes]


def _live() -> tuple[ColumnElement[bool], ...]:
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > utc_now())


def refuse_keyless(session: Session, host: str) -> None:
    """Raises `ValueError` when the API would listen beyond this machine while no key exists."""
    if host not in LOOPBACK and not has_live_key(session):
        raise ValueError(
            f"no API key exists yet, so the service will not listen on {host}: make one with `secateur keys create`, "
            "or set SECATEUR_ADMIN_KEY"
        )


class KeyUse:
    """When keys were last used: noted in memory, written now and then, so that no read becomes a write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, datetime] = {}

    def note(self, key_id: str) -> None:
        """A request with this key has come."""
        with self._lock:
            self._seen[key_id] = utc_now()

    def flush(self, session: Session) -> None:
        """Write the times that moved by more than a minute."""
        with self._lock:
            seen, self._seen = self._seen, {}
        for key_id, used in sorted(seen.items()):
            stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < used - _USE_RESOLUTION)
            session.execute(
                update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=used),
                execution_options={"synchronize_session": False},
            )

    def __len__(self) -> int:
        return len(self._seen)
