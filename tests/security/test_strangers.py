"""What another tenant's key, and a page in a browser, can do with ids that they know: nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service import auth
from service.db import Database
from service.ids import new_id
from tests.service.published import Published, publish
from tests.service.samples import a_model, a_spec, store
from tests.service.test_app import METHODS

EVIL = "https://evil.example"
SPEC = {"pruning": {"cuts": [{"structure": "ffn_neurons", "ratio": 0.3, "criterion": {"kind": "taylor"}}]}}
BODIES: dict[str, Callable[[dict[str, str]], tuple[str, Any]]] = {
    "a job over a model": lambda ids: ("/v1/jobs", a_spec(ids["model"])),
    "a job over data": lambda ids: ("/v1/jobs", a_spec(ids["own"], dataset_id=ids["dataset"], **SPEC)),
    "its check": lambda ids: ("/v1/jobs?validate_only=true", a_spec(ids["model"])),
    "an estimate of a model": lambda ids: ("/v1/jobs:estimate", a_spec(ids["model"])),
    "an estimate over data": lambda ids: ("/v1/jobs:estimate", a_spec(ids["own"], dataset_id=ids["dataset"], **SPEC)),
    "an inspection over data": lambda ids: (f"/v1/models/{ids['own']}/inspections", {"dataset_id": ids["dataset"]}),
    "an inspection of a model": lambda ids: (f"/v1/models/{ids['model']}/inspections", {}),
}


@pytest.fixture
def published(client: TestClient, tmp_path: Path) -> Published:
    """What belongs to the tenant that is attacked."""
    app = client.app
    assert isinstance(app, FastAPI)
    return publish(app, tmp_path)


@pytest.fixture
def stranger(client: TestClient, database: Database, published: Published) -> TestClient:
    """A client with an admin key of another tenant."""
    with database.session_scope() as session:
        _, key = auth.issue_key(session, tenant="stranger", name="s", scopes=["admin"])
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def _answer(client: TestClient, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post(path, json=body)
    return answer.status_code, {**answer.json(), "request_id": ""}


@pytest.mark.parametrize("what", BODIES)
def test_a_foreign_id_in_a_body_is_as_unknown_as_any(
    stranger: TestClient, database: Database, published: Published, what: str
) -> None:
    own = store(database, a_model(tenant="stranger")).id
    foreign = {"own": own, "model": published.model.id, "dataset": published.dataset.id}
    unknown = {"own": own, "model": new_id("mdl"), "dataset": new_id("ds")}
    first, second = (_answer(stranger, *BODIES[what](ids)) for ids in (foreign, unknown))
    assert first == second
    assert first[0] == 404


@pytest.mark.parametrize("field", ["model_id", "dataset_id"])
def test_a_clone_takes_no_foreign_id(
    stranger: TestClient, database: Database, published: Published, field: str
) -> None:
    own = store(database, a_model(tenant="stranger")).id
    made = stranger.post("/v1/jobs", json=a_spec(own))
    assert made.status_code == 202, made.text
    ids = {"model_id": published.model.id, "dataset_id": published.dataset.id}
    clone = stranger.post(f"/v1/jobs/{made.json()['id']}/clone", json={field: ids[field], **SPEC})
    assert clone.status_code == 404, clone.text


def test_filters_find_nothing_of_another_tenant(stranger: TestClient, published: Published) -> None:
    for path in (
        f"/v1/jobs?model_id={published.job.model_id}",
        f"/v1/jobs?name={published.job.name}",
        f"/v1/audit?target={published.job.id}",
        "/v1/audit",
        "/v1/jobs",
        "/v1/models",
        "/v1/datasets",
        "/v1/webhook_endpoints",
    ):
        assert stranger.get(path).json()["data"] == [], path
    assert stranger.get("/v1/tenant").json()["name"] == "stranger"


def test_a_key_to_repeat_by_is_its_tenants_own(client: TestClient, database: Database) -> None:
    body, again = {"name": "k", "scopes": ["read"]}, {"Idempotency-Key": "shared"}
    mine = client.post("/v1/keys", json=body, headers=again).json()
    with database.session_scope() as session:
        _, other = auth.issue_key(session, tenant="stranger", name="s", scopes=["admin"])
    theirs = client.post("/v1/keys", json=body, headers={**again, "Authorization": f"Bearer {other}"}).json()
    assert (mine["id"], mine["key"]) != (theirs["id"], theirs["key"])


def test_a_page_of_another_origin_may_read_nothing_and_no_cookie_is_set(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    asked = 0
    for path, item in app.openapi()["paths"].items():
        for method in METHODS:
            if method not in item and method != "options":
                continue
            headers = {"Origin": EVIL, "Access-Control-Request-Method": "DELETE", "Sec-Fetch-Site": "cross-site"}
            answer = client.request(method, path, headers=headers)
            told = {name for name in answer.headers if name.startswith("access-control") or name == "set-cookie"}
            assert told == set(), (method, path)
            assert answer.headers["x-frame-options"] == "DENY"
            asked += 1
    assert asked > 80


def test_a_cookie_is_no_key(client: TestClient) -> None:
    key = client.headers.pop("Authorization").removeprefix("Bearer ")
    for cookie in (f"Authorization=Bearer {key}", f"api_key={key}", f"session={key}"):
        assert client.delete("/v1/models/mdl_x", headers={"Cookie": cookie, "Origin": EVIL}).status_code == 401
    assert client.get("/v1/jobs", params={"api_key": key, "access_token": key}).status_code == 401
