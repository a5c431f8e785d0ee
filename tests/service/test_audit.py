"""The audit log: an entry for each request that changes something, in its transaction, and none for others."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.app import create_app
from service.audit import ACTIONS, UNAUDITED
from service.auth import parse
from service.config import Settings
from service.db import Database
from service.tables import AuditEntry, Job
from tests.databases import on_databases
from tests.service.routes.test_datasets import JSONL
from tests.service.routes.test_datasets import post as post_dataset
from tests.service.routes.test_manifests import begin, complete, manifest, send_all
from tests.service.routes.test_models import MODELS, post
from tests.service.samples import TENANT, a_model, a_spec, store, submitted
from tests.uploads import bert_files, tar

HOOK = {"url": "https://93.184.215.14/in", "description": "canary-in-a-body"}


def entries(database: Database) -> list[AuditEntry]:
    """The whole log, oldest first."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(AuditEntry).order_by(AuditEntry.id)))


def log(database: Database) -> list[tuple[str, str | None]]:
    """Actions and targets, oldest first."""
    return [(entry.action, entry.target) for entry in entries(database)]


def test_every_route_that_changes_something_has_an_action(settings: Settings) -> None:
    app: FastAPI = create_app(settings)
    changing = {
        (method, route.path): set(route.param_convertors)
        for route in app.state.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    }
    assert set(changing) <= set(ACTIONS) | UNAUDITED
    assert not set(ACTIONS) & UNAUDITED
    for route, action in ACTIONS.items():
        if action.target is not None and route in changing:
            assert action.target in changing[route], route


@on_databases
def test_uploads_are_logged_however_they_come(client: TestClient, database: Database) -> None:
    files = bert_files()
    archived = post(client, tar(files)).json()["id"]
    model = begin(client, files, name="by manifest")
    begin(client, files, name="by manifest")  # goes on with it
    dropped = model["uploads"][0]["upload_url"].rpartition("/")[2]
    assert client.delete(f"/v1/uploads/{dropped}").status_code == 204
    model = client.get(f"{MODELS}/{model['id']}").json()
    send_all(client, model, files)
    for _ in range(2):
        assert complete(client, model).status_code == 200
    dataset = post_dataset(client, {"train": JSONL}).json()["id"]
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert client.delete(f"{MODELS}/{archived}").status_code == 204
    assert log(database) == [
        ("model.create", archived),
        ("model.create", model["id"]),
        ("upload.abort", dropped),
        ("model.complete", model["id"]),
        ("dataset.create", dataset),
        ("dataset.delete", dataset),
        ("model.delete", archived),
    ]


@on_databases
def test_who_did_it_is_told_and_no_secret(client: TestClient, database: Database, api_key: str) -> None:
    key = client.post("/v1/keys", json={"name": "ci", "scopes": ["write"]}, headers={"X-Request-Id": "mine"}).json()
    made = client.post("/v1/webhook_endpoints", json=HOOK).json()
    path = f"/v1/webhook_endpoints/{made['id']}"
    assert client.patch(path, json={"description": "canary-in-a-body"}).status_code == 200
    rotated = client.post(f"{path}/rotate_secret").json()
    delivery = client.post(f"{path}/test").json()["id"]
    assert client.post(f"{path}/deliveries/{delivery}/redeliver").status_code == 202
    assert client.delete(path).status_code == 204
    for _ in range(2):
        assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
    assert log(database) == [
        ("key.create", key["id"]),
        ("webhook_endpoint.create", made["id"]),
        ("webhook_endpoint.update", made["id"]),
        ("webhook_endpoint.rotate_secret", made["id"]),
        ("webhook_endpoint.test", delivery),
        ("webhook_endpoint.redeliver", delivery),
        ("webhook_endpoint.delete", made["id"]),
        ("key.delete", key["id"]),
    ]
    written = entries(database)
    assert {entry.key_id for entry in written} == {parse(api_key)}
    assert written[0].request_id == "mine"
    assert written[5].data == {"endpoint_id": made["id"]}
    everything = json.dumps([[str(value) for value in vars(entry).values()] for entry in written])
    for secret in (key["key"], made["secret"], rotated["secret"], "canary-in-a-body", HOOK["url"]):
        assert secret not in everything


@on_databases
def test_a_job_is_logged_when_it_is_made_and_ended(client: TestClient, database: Database) -> None:
    model = store(database, a_model())
    for _ in range(2):  # the second is a replay
        answer = client.post("/v1/jobs", json=a_spec(model.id), headers={"Idempotency-Key": "once"})
    job = answer.json()["id"]
    inspection = client.post(f"{MODELS}/{model.id}/inspections", json={}).json()["id"]
    assert client.post(f"/v1/jobs/{job}/cancel").status_code == 200
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    expected = [("job.create", job), ("inspection.create", inspection), ("job.cancel", job), ("job.delete", job)]
    assert log(database) == expected
    assert entries(database)[1].data == {"model_id": model.id}


@on_databases
def test_what_is_refused_or_only_asked_leaves_no_entry(client: TestClient, database: Database) -> None:
    model, job = store(database, a_model()), submitted(database, status="succeeded")
    answers: list[tuple[Any, int]] = [
        (client.post("/v1/jobs", params={"validate_only": "true"}, json=a_spec(model.id)), 200),
        (client.post("/v1/jobs", json=a_spec("mdl_none")), 422),
        (client.post(f"/v1/jobs/{job.id}/cancel"), 409),
        (client.post(MODELS, content=b"x", headers={"Content-Type": "application/x-tar"}), 400),
        (client.delete("/v1/keys/key_none"), 404),
        (client.post("/v1/keys", json={"name": "x", "scopes": []}), 422),
        (client.get("/v1/jobs"), 200),
        (client.post("/v1/keys", json={}, headers={"Authorization": "Bearer no"}), 401),
    ]
    assert [answer.status_code for answer, _ in answers] == [status for _, status in answers]
    assert log(database) == []


def test_the_entry_is_in_the_transaction_of_the_change(
    settings: Settings, api_key: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Session) -> None:
        raise OperationalError("COMMIT", {}, Exception())

    model = store(database, a_model())
    with TestClient(
        create_app(settings), base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"}
    ) as client:
        monkeypatch.setattr(Session, "commit", fail)
        answers = [client.post("/v1/jobs", json=a_spec(model.id)), client.post(MODELS, json=manifest(bert_files()))]
        monkeypatch.undo()
    assert [answer.status_code for answer in answers] == [503, 503]
    assert log(database) == []
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(Job.id).where(Job.tenant == TENANT)) is None


@on_databases
def test_a_clone_is_logged_as_a_job_of_its_own(client: TestClient, database: Database) -> None:
    origin = submitted(database)
    clone = client.post(f"/v1/jobs/{origin.id}/clone", json={}).json()["id"]
    assert log(database) == [("job.clone", clone)]
    assert entries(database)[0].data == {"job_id": origin.id}


@on_databases
@pytest.mark.parametrize("status", ["queued", "running"])
def test_what_was_asked_for_before_is_logged_once(client: TestClient, database: Database, status: str) -> None:
    job = submitted(database, status=status, lease_until=4e9, worker="w")
    asked = ["pause", "resume", "cancel", "retry"] if status == "queued" else ["pause", "cancel"]
    for action in asked:
        for _ in range(3):
            assert client.post(f"/v1/jobs/{job.id}/{action}").status_code == 200
    assert log(database) == [(f"job.{action}", job.id) for action in asked]
