"""Keys that were just looked up: believed for a moment, forgotten where they are revoked."""

import time

from starlette.testclient import TestClient

from service.app import create_app
from service.auth import Principal, issue_key, new_plaintext
from service.callers import BELIEVED_SECONDS, Caller, Callers
from service.config import Settings
from service.db import Database
from tests.databases import on_databases
from tests.service.samples import TENANT
from tests.service.test_rates import Clock

PROMISED_SECONDS = 1.0


def a_caller(key_id: str = "key_1") -> Caller:
    """Someone who may read."""
    return Caller(Principal(TENANT, key_id, frozenset({"read"})), None)


def test_a_caller_is_believed_for_less_than_was_promised_and_kept_without_the_key() -> None:
    assert BELIEVED_SECONDS < PROMISED_SECONDS
    clock, header = Clock(), f"Bearer {new_plaintext()}"
    callers = Callers(clock)
    callers.keep(header, a_caller())
    assert header not in repr(vars(callers))
    clock.now += BELIEVED_SECONDS - 0.01
    assert callers.known(header) == a_caller()
    assert callers.known(header.lower()) is None
    clock.now += 0.02
    assert callers.known(header) is None


def test_a_revoked_key_is_forgotten_and_no_other() -> None:
    callers = Callers(Clock())
    callers.keep("Bearer one", a_caller("key_1"))
    callers.keep("Bearer two", a_caller("key_2"))
    callers.forget("key_1")
    assert callers.known("Bearer one") is None
    assert callers.known("Bearer two") == a_caller("key_2")


def test_many_callers_take_bounded_memory() -> None:
    callers = Callers(Clock())
    for number in range(10_001):
        callers.keep(f"Bearer {number}", a_caller())
    assert callers.known("Bearer 10000") is not None
    assert callers.known("Bearer 1") is None


@on_databases
def test_a_revoked_key_is_refused_at_once_here_and_soon_elsewhere(
    settings: Settings, database: Database, api_key: str
) -> None:
    with database.session_scope() as session:
        row, plaintext = issue_key(session, tenant=TENANT, name="gone", scopes=["read"])
    revoker, bearer = {"Authorization": f"Bearer {api_key}"}, {"Authorization": f"Bearer {plaintext}"}
    url = "http://127.0.0.1:8400"
    with TestClient(create_app(settings), url) as here, TestClient(create_app(settings), url) as elsewhere:
        assert [client.get("/v1/jobs", headers=bearer).status_code for client in (here, elsewhere)] == [200, 200]
        assert here.delete(f"/v1/keys/{row.id}", headers=revoker).status_code == 204
        assert here.get("/v1/jobs", headers=bearer).status_code == 401
        deadline = time.monotonic() + 10 * PROMISED_SECONDS  # ten times: the machine is shared
        while elsewhere.get("/v1/jobs", headers=bearer).status_code != 401:
            assert time.monotonic() < deadline
        assert elsewhere.get("/v1/jobs", headers=revoker).status_code == 200
