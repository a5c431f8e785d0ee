"""Keys over HTTP."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.tables import utc_now


def test_a_key_is_shown_once_works_and_can_be_revoked(client: TestClient) -> None:
    expires = (utc_now() + timedelta(days=1)).isoformat()
    answer = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_at": expires})
    assert answer.status_code == 201
    created = answer.json()
    bearer = {"Authorization": f"Bearer {created['key']}"}
    assert client.get("/v1/jobs", headers=bearer).status_code == 200
    listed = client.get("/v1/keys").json()["data"]
    assert created["key"] not in str(listed)
    assert listed[0] == {name: value for name, value in created.items() if name != "key"}
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
    ],
)
def test_bad_orders_are_refused_at_their_field(client: TestClient, order: dict[str, Any], pointer: str) -> None:
    answer = client.post("/v1/keys", json=order)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_BODY")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
