"""API keys: what is stored, what is accepted, what is refused."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from service import auth
from service.db import Database
from service.errors import Unauthorized
from service.tables import ApiKey, utc_now
from tests.service.samples import TENANT


def _issue(database: Database, *scopes: str, lives: timedelta | None = None) -> tuple[ApiKey, str]:
    expires = utc_now() + lives if lives is not None else None
    with database.session_scope() as session:
        return auth.issue_key(session, tenant=TENANT, name="k", scopes=scopes, expires_at=expires)


def test_only_a_hash_is_stored(database: Database) -> None:
    row, plaintext = _issue(database, "read")
    secret = plaintext.split("_")[2]
    with database.session_scope(read_only=True) as session:
        stored = session.get_one(ApiKey, row.id)
        assert all(secret not in str(getattr(stored, column.key)) for column in ApiKey.__table__.columns)
        principal = auth.authenticate(session, f"Bearer {plaintext}")
    assert principal == auth.Principal(TENANT, row.id, frozenset({"read"}))


@pytest.mark.parametrize(
    ("scope", "implied"),
    [("read", {"read"}), ("write", {"read", "write"}), ("admin", {"read", "write", "admin"})],
)
def test_a_scope_includes_the_weaker_ones(database: Database, scope: str, implied: set[str]) -> None:
    _, plaintext = _issue(database, scope)
    with database.session_scope(read_only=True) as session:
        assert auth.authenticate(session, f"bearer {plaintext}").scopes == implied


def test_wrong_keys_are_refused_alike(database: Database) -> None:
    row, plaintext = _issue(database, "admin")
    prefix, key_id, secret, _ = plaintext.split("_")
    forged = f"{prefix}_{key_id}_{'0' * len(secret)}"
    import zlib

    wrong = [
        auth.new_plaintext(),
        f"{forged}_{zlib.crc32(forged.encode()):08x}",
        plaintext[:-1] + ("0" if plaintext[-1] != "0" else "1"),
        "sct_",
        "",
        "x" * 100_000,
        plaintext + "\u00e9",
    ]
    details = set()
    with database.session_scope(read_only=True) as session:
        for key in wrong:
            with pytest.raises(Unauthorized) as caught:
                auth.authenticate(session, f"Bearer {key}")
            details.add(caught.value.detail)
            assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
        for header in (None, "", "Basic abc", plaintext):
            with pytest.raises(Unauthorized):
                auth.authenticate(session, header)
    assert len(details) == 1
    assert row.id == f"key_{key_id}"


def test_expired_and_revoked_keys_are_refused(database: Database) -> None:
    _, expired = _issue(database, "read", lives=timedelta(seconds=-1))
    row, revoked = _issue(database, "read", lives=timedelta(days=1))
    with database.session_scope() as session:
        auth.authenticate(session, f"Bearer {revoked}")
        session.get_one(ApiKey, row.id).revoked_at = utc_now()
    with database.session_scope(read_only=True) as session:
        for key in (expired, revoked):
            with pytest.raises(Unauthorized):
                auth.authenticate(session, f"Bearer {key}")
        assert not auth.has_live_key(session)


def test_the_operators_key_is_installed_once_and_stays_revoked(database: Database) -> None:
    plaintext = auth.new_plaintext()
    for _ in range(2):
        with database.session_scope() as session:
            auth.install_admin_key(session, plaintext)
    with database.session_scope() as session:
        assert "admin" in auth.authenticate(session, f"Bearer {plaintext}").scopes
        session.scalars(select(ApiKey)).one().revoked_at = utc_now()
    with database.session_scope() as session:
        auth.install_admin_key(session, plaintext)
        with pytest.raises(Unauthorized):
            auth.authenticate(session, f"Bearer {plaintext}")
        with pytest.raises(ValueError, match="malformed"):
            auth.install_admin_key(session, "secret")


def test_without_a_key_only_the_loopback_may_listen(database: Database) -> None:
    with database.session_scope(read_only=True) as session:
        auth.refuse_keyless(session, "127.0.0.1")
        with pytest.raises(ValueError, match="secateur keys create"):
            auth.refuse_keyless(session, "0.0.0.0")
    _issue(database, "admin")
    with database.session_scope(read_only=True) as session:
        auth.refuse_keyless(session, "0.0.0.0")


def test_last_use_is_written_at_most_once_a_minute(database: Database) -> None:
    row, _ = _issue(database, "read")
    use = auth.KeyUse()
    seen = []
    for age in (None, timedelta(seconds=30), timedelta(minutes=2)):
        if age is not None:
            with database.session_scope() as session:
                session.get_one(ApiKey, row.id).last_used_at = utc_now() - age
        use.note(row.id)
        with database.session_scope() as session:
            before = session.get_one(ApiKey, row.id).last_used_at
            use.flush(session)
            session.expire_all()
            seen.append(session.get_one(ApiKey, row.id).last_used_at != before)
        assert len(use) == 0
    assert seen == [True, False, True]
