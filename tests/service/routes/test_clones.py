"""Clones of jobs over HTTP: what changes, what stays, and what is answered when it comes again."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db import Database
from service.routes.lifecycle import merged
from tests.databases import on_databases
from tests.service.routes.test_lifecycle import ask, rung
from tests.service.samples import a_model, a_spec, a_worker, store


@on_databases
def test_a_clone_is_a_new_job_with_the_changes_asked_for(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), a_worker())
    spec = a_spec(model.id, metadata={"team": "search", "run": "1"}, seed=3)
    origin = client.post("/v1/jobs", json=spec).json()
    ask(client, origin["id"], "cancel")
    changes = {"seed": None, "name": "again", "metadata": {"run": "2"}}
    headers = {"Idempotency-Key": "clone"}
    status, clone = ask(client, origin["id"], "clone", json=changes, headers=headers)
    assert (status, clone["status"], clone["cloned_from"]) == (202, "queued", origin["id"])
    wanted = {**spec, "name": "again", "metadata": {"team": "search", "run": "2"}}
    del wanted["seed"]
    assert (clone["spec"], clone["configuration"]["seed"]) == (wanted, 0)
    assert clone["id"] in rung(client)
    again = client.post(f"/v1/jobs/{origin['id']}/clone", json=changes, headers=headers)
    assert (again.json(), again.headers["idempotency-replayed"]) == (clone, "true")
    same = ask(client, clone["id"], "clone")[1]
    assert (same["spec"], same["fingerprint"]) == (wanted, clone["fingerprint"])
    status, problem = ask(client, origin["id"], "clone", json={"max_length": 9000})
    assert (status, problem["errors"][0]["pointer"]) == (422, "/max_length")
    assert ask(client, origin["id"], "clone", json=[])[0] == 422
    assert client.get("/v1/jobs").json()["data"][0]["id"] == same["id"], "what was refused is not there"


@on_databases
def test_a_clone_that_comes_again_is_answered_as_before_though_its_origin_is_gone(
    client: TestClient, database: Database
) -> None:
    store(database, model := a_model())
    origin = client.post("/v1/jobs", json=a_spec(model.id)).json()
    headers = {"Idempotency-Key": "clone"}
    clone = ask(client, origin["id"], "clone", headers=headers)[1]
    ask(client, origin["id"], "cancel")
    assert client.delete(f"/v1/jobs/{origin['id']}").status_code == 204
    assert ask(client, origin["id"], "clone", headers=headers) == (202, clone)
    assert ask(client, origin["id"], "clone", headers={"Idempotency-Key": "other"})[0] == 404
    assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [clone["id"]]


def test_an_inspection_is_paused_and_cloned_too(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    origin = client.post(f"/v1/models/{model.id}/inspections", json={"rows": 9}).json()
    assert ask(client, origin["id"], "pause")[1]["status"] == "paused"
    clone = ask(client, origin["id"], "clone", json={"rows": 8})[1]
    assert (clone["kind"], clone["spec"], clone["configuration"]["model_id"]) == ("inspection", {"rows": 8}, model.id)
    assert ask(client, origin["id"], "clone", json={"pruning": {}})[0] == 422


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": 3}}, {"a": {"c": 2, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}),
    ],
)
def test_a_merge_patch_changes_what_it_names(target: Any, patch: Any, result: Any) -> None:
    assert merged(target, patch) == result
