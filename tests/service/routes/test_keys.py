"""Keys over HTTP."""

from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service.auth import issue_key, parse
from service.db import Database
from service.tables import ApiKey, IdempotencyRecord, utc_now
from tests.databases import on_databases


def test_a_key_is_shown_once_works_and_can_be_revoked(client: TestClient) -> None:
    expires = (utc_now() + timedelta(days=1)).isoformat()
    answer = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_at": expires})
    assert answer.status_code == 201
    created = answer.json()
    bearer = {"Authorization": f"Bearer {created['key']}"}
    assert client.get("/v1/jobs", headers=bearer).status_code == 200
    listed = client.get("/v1/keys").json()["data"]
    assert created["key"] not in str(listed)
    # Its use was noted when it asked for jobs, and may be stored by now.
    shown = {name: value for name, value in created.items() if name not in ("key", "last_used_at")}
    assert {name: value for name, value in listed[0].items() if name != "last_used_at"} == shown
    for _ in range(2):
        assert client.delete(f"/v1/keys/{created['id']}").status_code == 204
    assert client.get("/v1/jobs", headers=bearer).status_code == 401
    assert client.get("/v1/keys").json()["data"][0]["revoked_at"]


@pytest.mark.parametrize(
    ("order", "pointer"),
    [
        ({"scopes": ["read"]}, "/name"),
        ({"name": "a", "scopes": []}, "/scopes"),
        ({"name": "a", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "a", "scopes": ["read"], "tenant": "other"}, "/tenant"),
        ({"name": "a", "scopes": ["read"], "expires_at": "soon"}, "/expires_at"),
        ({"name": "a", "scopes": ["read"], "expires_at": "2000-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "a", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00"}, "/expires_at"),
        ({"name": "a", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59-14:00"}, "/expires_at"),
        ({"name": "a", "scopes": ["read"], "expires_in": 0}, "/expires_in"),
        ({"name": "a", "scopes": ["read"], "expires_in": 10**12}, "/expires_in"),
        ({"name": "a", "scopes": ["read"], "expires_in": 60, "expires_at": "2999-01-01T00:00:00Z"}, "/expires_in"),
    ],
)
def test_bad_orders_are_refused_at_their_field(client: TestClient, order: dict[str, Any], pointer: str) -> None:
    answer = client.post("/v1/keys", json=order)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_BODY")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@on_databases
def test_a_key_that_was_made_is_not_shown_again(client: TestClient, database: Database) -> None:
    order, once = {"name": "ci", "scopes": ["read"]}, {"Idempotency-Key": "once"}
    made = client.post("/v1/keys", json=order, headers=once).json()
    again = client.post("/v1/keys", json=order, headers=once)
    assert (again.status_code, again.json()["code"]) == (409, "IDEMPOTENCY_SECRET_NOT_KEPT")
    assert again.json()["key_id"] == made["id"]
    assert made["key"] not in again.text
    assert client.post("/v1/keys", json={**order, "name": "x"}, headers=once).status_code == 422
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(ApiKey).where(ApiKey.name == "ci")) == 1
        kept = session.scalars(select(IdempotencyRecord)).one()
        assert made["key"] not in str(kept.body)


def test_a_key_can_be_made_for_a_while(client: TestClient) -> None:
    made = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in": 3600}).json()
    left = datetime.fromisoformat(made["expires_at"]) - utc_now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


@on_databases
def test_the_last_admin_key_stays(client: TestClient, database: Database, api_key: str) -> None:
    path = f"/v1/keys/{parse(api_key)}"
    with database.session_scope() as session:
        issue_key(session, tenant="other", name="theirs", scopes=["admin"])
        issue_key(session, tenant="default", name="late", scopes=["admin"], expires_at=utc_now() - timedelta(days=1))
        issue_key(session, tenant="default", name="weak", scopes=["write"])
    refused = client.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "LAST_ADMIN_KEY")
    assert client.post("/v1/keys", json={"name": "next", "scopes": ["admin"]}).status_code == 201
    assert client.delete(path).status_code == 204
    assert client.get("/v1/jobs").status_code == 401


def test_no_other_key_grants_scopes(client: TestClient, database: Database) -> None:
    with database.session_scope() as session:
        _, plaintext = issue_key(session, tenant="default", name="w", scopes=["read", "write"])
    order = {"name": "up", "scopes": ["admin"]}
    answer = client.post("/v1/keys", json=order, headers={"Authorization": f"Bearer {plaintext}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING")


def test_the_list_tells_when_a_key_was_used(client: TestClient, database: Database) -> None:
    assert client.get("/v1/keys").json()["data"][0]["last_used_at"] is None
    app = cast(FastAPI, client.app)
    with database.session_scope() as session:
        app.state.key_use.flush(session)
    assert client.get("/v1/keys").json()["data"][0]["last_used_at"]
