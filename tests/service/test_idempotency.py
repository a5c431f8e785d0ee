"""Idempotency-Key: one creation, one answer, however often and however fast it is asked for."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service import idempotency, postgresql
from service.client import Client
from service.config import Settings
from service.db import Database
from service.tables import ApiKey, IdempotencyRecord, Job, utc_now
from tests.databases import on_databases
from tests.live import LiveService
from tests.service.samples import a_model, a_spec, store

KEY = {"Idempotency-Key": "order-1"}


def _count(database: Database, table: type[Any]) -> int:
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@on_databases
def test_twenty_at_once_make_one_job(client: TestClient, database: Database) -> None:
    spec = a_spec(store(database, a_model()).id)
    start, answers = threading.Barrier(20), []

    def submit() -> None:
        start.wait()
        answers.append(client.post("/v1/jobs", json=spec, headers=KEY))

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert _count(database, Job) == 1


@on_databases
def test_another_body_under_the_same_key_is_refused(client: TestClient, database: Database) -> None:
    spec = a_spec(store(database, a_model()).id)
    assert client.post("/v1/jobs", json=spec, headers=KEY).status_code == 202
    answer = client.post("/v1/jobs", json={**spec, "seed": 1}, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "order-2"}).status_code == 202
    assert client.post("/v1/jobs", json=spec).status_code == 202
    assert _count(database, Job) == 3


@on_databases
def test_a_refused_request_keeps_nothing(client: TestClient, database: Database) -> None:
    spec = a_spec(store(database, a_model()).id)
    assert client.post("/v1/jobs", json={**spec, "max_length": 8000}, headers=KEY).status_code == 422
    assert _count(database, IdempotencyRecord) == 0
    assert client.post("/v1/jobs", json=spec, headers=KEY).status_code == 202


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that is opened from now on."""
    monkeypatch.setitem(postgresql._SERVER, "lock_timeout", "100ms")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_first_request_that_takes_long_is_not_waited_for(client: TestClient, database: Database) -> None:
    spec = a_spec(store(database, a_model()).id)
    with database.session_scope() as session:
        assert idempotency._reserve(session, ("default", "POST /v1/jobs", KEY["Idempotency-Key"]), "digest")
        answer = client.post("/v1/jobs", json=spec, headers=KEY)
        session.rollback()
    assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_IN_FLIGHT")
    assert client.post("/v1/jobs", json=spec, headers=KEY).status_code == 202


def test_validation_alone_keeps_nothing(client: TestClient, database: Database) -> None:
    spec = a_spec(store(database, a_model()).id)
    assert client.post("/v1/jobs?validate_only=true", json=spec, headers=KEY).status_code == 200
    assert (_count(database, IdempotencyRecord), _count(database, Job)) == (0, 0)


def test_a_replayed_key_is_not_shown_again(client: TestClient, database: Database) -> None:
    order = {"name": "ci", "scopes": ["read"]}
    first, second = (client.post("/v1/keys", json=order, headers=KEY) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 409)
    assert second.json()["key_id"] == first.json()["id"]
    assert _count(database, ApiKey) == 2
    secret = first.json()["key"]
    with database.session_scope(read_only=True) as session:
        assert secret not in str(session.scalars(select(IdempotencyRecord)).one().body)


def test_keys_are_apart_by_tenant_and_route(client: TestClient, database: Database) -> None:
    from service.auth import issue_key

    assert client.post("/v1/keys", json={"name": "a", "scopes": ["read"]}, headers=KEY).status_code == 201
    store(database, model := a_model())
    assert client.post("/v1/jobs", json=a_spec(model.id), headers=KEY).status_code == 202
    with database.session_scope() as session:
        _, other = issue_key(session, tenant="other", name="o", scopes=["admin"])
    bearer = {"Authorization": f"Bearer {other}", **KEY}
    assert client.post("/v1/keys", json={"name": "b", "scopes": ["read"]}, headers=bearer).status_code == 201


def test_malformed_keys_are_refused(client: TestClient) -> None:
    for key in ("", "x" * 256):
        answer = client.post("/v1/keys", json={"name": "a", "scopes": ["read"]}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["code"]) == (400, "IDEMPOTENCY_KEY_INVALID")


def test_answers_are_kept_48_hours(client: TestClient, database: Database) -> None:
    for age in (47, 49):
        order = {"name": "a", "scopes": ["read"]}
        client.post("/v1/keys", json=order, headers={"Idempotency-Key": f"age-{age}"})
        with database.session_scope() as session:
            record = session.scalars(select(IdempotencyRecord).where(IdempotencyRecord.key == f"age-{age}")).one()
            record.created_at = utc_now() - timedelta(hours=age)
    with database.session_scope() as session:
        idempotency.expire(session)
        assert session.scalars(select(IdempotencyRecord.key)).all() == ["age-47"]


@on_databases
def test_fifty_at_once_over_http_make_one_job(settings: Settings, database: Database, api_key: str) -> None:
    store(database, model := a_model())
    with LiveService(settings, api_key) as service, ThreadPoolExecutor(50) as pool:
        service.start_api()
        together = threading.Barrier(50)

        def submit(_: int) -> dict[str, Any]:
            with Client(service.url, api_key) as client:  # sends again what was still in flight
                together.wait()
                return client.submit_job(a_spec(model.id), idempotency_key="one")

        answers = list(pool.map(submit, range(50)))
    assert all(answer == answers[0] for answer in answers)
    with database.session_scope(read_only=True) as session:
        assert session.scalars(select(Job.id)).all() == [answers[0]["id"]]
