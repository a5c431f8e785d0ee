"""The application as a whole: locked by default, closed between tenants, documented in full, light to start."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from service import auth
from service.app import PUBLIC, ROUTERS, create_app
from service.config import Settings
from service.db import Database
from service.ids import new_id
from service.tables import WebhookEndpoint
from service.webhooks import outbox
from tests.service.published import Published, publish

PREFIXES = {
    "model_id": "mdl",
    "dataset_id": "ds",
    "job_id": "job",
    "artifact_id": "art",
    "key_id": "key",
    "upload_id": "upl",
}
PREFIXES |= {"endpoint_id": "whe", "delivery_id": "wvd"}
METHODS = ("get", "head", "options", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app(Settings()).openapi()


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def _app(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def test_nothing_but_the_public_routes_answers_without_a_key(
    anonymous_client: TestClient, document: dict[str, Any]
) -> None:
    wrong = {"Authorization": f"Bearer {auth.new_plaintext()}"}
    asked = 0
    for method, path, _ in _operations(document):
        if path in PUBLIC:
            continue
        for headers in ({}, wrong):
            answer = anonymous_client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                assert answer.json()["code"] == "UNAUTHORIZED"
            asked += 1
    assert asked > 30


def test_the_document_lists_every_route(document: dict[str, Any]) -> None:
    routes = {
        (method, route.path_format)  # type: ignore[attr-defined]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    listed = {(method, path) for method, path, _ in _operations(document)}
    assert routes <= listed
    assert listed - routes == {("GET", "/healthz"), ("GET", "/readyz")}


def test_an_unlocked_route_stops_the_start() -> None:
    router = APIRouter()
    router.add_api_route("/open", lambda: None)
    from service.app import _check_locked

    with pytest.raises(RuntimeError, match="/open"):
        _check_locked(router)


@pytest.mark.parametrize("path", [*sorted(PUBLIC), "/openapi.json"])
def test_public_routes_need_no_key(anonymous_client: TestClient, path: str) -> None:
    assert anonymous_client.get(path).status_code != 401


def _ids(published: Published, key_id: str) -> dict[str, str]:
    return {
        "model_id": published.model.id,
        "dataset_id": published.dataset.id,
        "job_id": published.job.id,
        "artifact_id": published.artifacts["report/report.html"].id,
        "key_id": key_id,
        "path": "config.json",
    }


def _upload_id(client: TestClient) -> str:
    file = {"path": "config.json", "size": 1, "sha256": "0" * 64}
    begun = client.post("/v1/models", json={"files": [file]}).json()
    return str(begun["uploads"][0]["upload_url"]).rpartition("/")[2]


def _webhook_ids(database: Database) -> dict[str, str]:
    with database.session_scope() as session:
        endpoint_id = outbox.signer_of_jobs(session, "default")
        delivery = outbox.queue_test(session, session.get_one(WebhookEndpoint, endpoint_id))
        delivery.status = "failed"
        return {"endpoint_id": endpoint_id, "delivery_id": delivery.id}


def test_a_foreign_id_is_as_unknown_as_any(
    client: TestClient, database: Database, document: dict[str, Any], tmp_path: Path
) -> None:
    published = publish(_app(client), tmp_path)
    with database.session_scope() as session:
        own_key, _ = auth.issue_key(session, tenant="default", name="own", scopes=["read"])
        _, stranger = auth.issue_key(session, tenant="stranger", name="s", scopes=["admin"])
    own = _ids(published, own_key.id) | _webhook_ids(database) | {"upload_id": _upload_id(client)}
    unknown = {**own, **{name: new_id(prefix) for name, prefix in PREFIXES.items()}}
    bearer = {"Authorization": f"Bearer {stranger}"}
    operations = [(method, path) for method, path, _ in _operations(document) if "{" in path]
    assert len(operations) > 15
    for method, path in operations:
        body: dict[str, Any] | None = {} if method in ("POST", "PATCH") else None
        foreign, none = (
            client.request(method, path.format(**ids), headers=bearer, json=body) for ids in (own, unknown)
        )
        assert (foreign.status_code, none.status_code) == (404, 404), (method, path)
        if method != "HEAD":
            bodies = [{**answer.json(), "request_id": ""} for answer in (foreign, none)]
            assert bodies[0] == bodies[1], (method, path)
    for method, path in operations:  # the owner sees what the stranger could not, and nothing was harmed
        if method in ("GET", "HEAD") and "dataset" not in path:
            assert client.request(method, path.format(**own)).status_code == 200, (method, path)


def test_lists_show_only_the_tenants_own(client: TestClient, database: Database, tmp_path: Path) -> None:
    publish(_app(client), tmp_path)
    with database.session_scope() as session:
        _, stranger = auth.issue_key(session, tenant="stranger", name="s", scopes=["admin"])
    for path, others in (("/v1/jobs", 0), ("/v1/models", 0), ("/v1/datasets", 0), ("/v1/keys", 1)):
        assert client.get(path).json()["data"]
        seen = client.get(path, headers={"Authorization": f"Bearer {stranger}"}).json()["data"]
        assert len(seen) == others


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for method, path, operation in _operations(document):
        assert operation["summary"], (method, path)
        assert "422" not in operation["responses"] or path not in PUBLIC
        if path not in PUBLIC:
            assert operation["security"], (method, path)
            for status in ("401", "403", "500", "503"):
                content = operation["responses"][status]["content"]
                assert list(content) == ["application/problem+json"], (method, path, status, list(content))
    identifiers = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(identifiers)) == len(identifiers)


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"JobSpec", "NewKey", "Problem", "JobView"} <= schemas.keys()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                assert node["$ref"].rpartition("/")[2] in schemas
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)


def test_every_body_has_an_example_that_is_one(document: dict[str, Any]) -> None:
    bodies = set()
    for _, _, operation in _operations(document):
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in part.get("content", {}).values():
                if "$ref" in content.get("schema", {}):
                    bodies.add(content["schema"]["$ref"].rpartition("/")[2])
    assert len(bodies) > 20
    for name in sorted(bodies):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        (example,) = document["components"]["schemas"][name]["examples"]
        faults = [fault.message for fault in jsonschema_rs.validator_for(schema).iter_errors(example)]
        assert not faults, (name, faults)


def test_the_page_at_docs_names_every_path(anonymous_client: TestClient, document: dict[str, Any]) -> None:
    page = anonymous_client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(f"<code>{path}</code>" in page.text for path in document["paths"])
    assert "<script" not in page.text


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    nowhere, wrong = client.get("/v2/jobs"), client.put("/v1/jobs")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert "GET" in wrong.headers["allow"]
    for answer in (nowhere, wrong):
        assert answer.headers["content-type"] == "application/problem+json"


def test_bad_parameters_are_problems_without_their_values(client: TestClient) -> None:
    answer = client.get("/v1/jobs", params={"limit": "canary", "status": "canary", "created_after": "canary"})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_PARAMETER")
    assert "canary" not in answer.text
    assert "limit" in answer.text and "created_after" in answer.text


def test_a_database_that_is_away_is_503(settings: Settings, api_key: str) -> None:
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"}) as client:
        working = app.state.database
        app.state.database = Database("postgresql://nobody@127.0.0.1:1/none")
        answer = client.get("/v1/jobs")
        app.state.database = working
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"]
    assert "127.0.0.1" not in answer.text


def test_the_operators_key_is_installed_at_the_start(settings: Settings) -> None:
    key = auth.new_plaintext()
    app = create_app(settings.model_copy(update={"admin_key": type(settings.broker_url)(key)}))
    with TestClient(app, base_url="http://127.0.0.1:8400") as client:
        assert client.get("/v1/keys", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_the_api_starts_without_any_ml() -> None:
    script = (
        "import sys, service.app\n"
        "heavy = {'torch', 'transformers', 'numpy', 'onnx', 'onnxruntime', 'workers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr == ""
