"""Inspections over HTTP: submit, look, list; what the door refuses; no model comes of them."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service import jobs
from service.auth import issue_key
from service.broker import Broker
from service.db import Database
from service.specs.inspection import Inspection
from service.tables import Job
from tests.databases import on_databases
from tests.service.samples import (
    FINDINGS,
    TENANT,
    a_dataset,
    a_model,
    a_model_of,
    a_worker,
    an_artifact,
    store,
    submitted,
)


def _app(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def inspect(client: TestClient, model_id: str, body: Any = None, **headers: str) -> Any:
    """The answer to a new inspection."""
    return client.post(f"/v1/models/{model_id}/inspections", json=body or {}, headers=headers)


def finish(database: Database, job_id: str, *artifacts: Any) -> None:
    """End an inspection as a worker does."""
    with database.session_scope() as session:
        claim = jobs.claim(session, job_id, "w1", 60)
        assert claim is not None
        assert jobs.finish(session, claim, "succeeded", FINDINGS, None, list(artifacts))


@on_databases
def test_an_inspection_is_a_job_that_is_stored_and_rung(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), dataset := a_dataset(), a_worker())
    body = {"dataset_id": dataset.id, "metadata": {"team": "search"}, "priority": 3}
    answer = inspect(client, model.id, body)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"http://127.0.0.1:8400/v1/jobs/{job['id']}"
    assert (job["kind"], job["name"], job["status"], job["spec"]) == ("inspection", "inspection", "queued", body)
    assert (job["result"], job["inspection"], job["warnings"]) == (None, None, [])
    configuration = job["configuration"]
    assert (configuration["kind"], configuration["model_id"]) == ("inspection", model.id)
    assert (configuration["task"], configuration["max_length"]) == ("text-classification", 128)
    assert configuration["structures"] == ["attention_heads", "ffn_neurons", "layers", "weights"]
    assert [c["kind"] for c in configuration["criteria"]] == ["magnitude", "taylor", "fisher", "similarity"]
    assert Inspection.model_validate(configuration).model_dump(mode="json") == configuration
    broker: Broker = _app(client).state.broker
    assert broker.waiting() == {job["id"]}


@on_databases
def test_the_same_key_gives_the_same_job(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), other := a_model())
    headers = {"Idempotency-Key": "once"}
    first, again = (inspect(client, model.id, {"rows": 8}, **headers) for _ in range(2))
    assert again.json() == first.json() and again.headers["idempotency-replayed"] == "true"
    assert inspect(client, model.id, {"rows": 9}, **headers).json()["code"] == "IDEMPOTENCY_KEY_REUSED"
    assert inspect(client, other.id, {"rows": 8}, **headers).json()["id"] != first.json()["id"]


def test_without_rows_the_weights_alone_are_looked_at(client: TestClient, database: Database) -> None:
    store(database, model := a_model(facts={"has_tokenizer": False}), a_worker())
    job = inspect(client, model.id).json()
    assert [c["kind"] for c in job["configuration"]["criteria"]] == ["magnitude"]
    assert [warning["code"] for warning in job["warnings"]] == ["LOSS_NOT_MEASURED"]


def test_rows_that_none_may_be_scored_by_still_measure(client: TestClient, database: Database) -> None:
    split = {"rows": 8, "size": 100, "sha256": "0" * 64}
    store(database, model := a_model(), dataset := a_dataset(splits={"test": split}), a_worker())
    job = inspect(client, model.id, {"dataset_id": dataset.id}).json()
    assert ([c["kind"] for c in job["configuration"]["criteria"]], job["warnings"]) == (["magnitude"], [])


def test_criteria_that_score_nothing_asked_for_are_left_out_by_default(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), dataset := a_dataset())
    body = {"dataset_id": dataset.id, "structures": ["ffn_neurons"]}
    job = inspect(client, model.id, body).json()
    assert [c["kind"] for c in job["configuration"]["criteria"]] == ["magnitude", "taylor", "fisher"]


def test_a_bare_encoder_is_looked_at_as_it_is_or_with_a_new_head(client: TestClient, database: Database) -> None:
    bare = {"task": None, "facts": {"has_head": False, "labels": None}}
    store(database, model := a_model(**bare), dataset := a_dataset())
    assert inspect(client, model.id).json()["configuration"]["task"] == "sentence-embedding"
    trained = inspect(client, model.id, {"dataset_id": dataset.id, "baseline": {"epochs": 1}})
    assert trained.json()["configuration"]["task"] == "text-classification"
    refused = inspect(client, model.id, {"dataset_id": dataset.id, "task": "text-classification"}).json()
    assert (refused["code"], refused["errors"][0]["pointer"]) == ("BASELINE_REQUIRED", "/baseline")


def test_of_an_unknown_family_the_weights_near_zero_are_counted(client: TestClient, database: Database) -> None:
    store(database, model := a_model_of("mystery"), dataset := a_dataset(), a_worker())
    job = inspect(client, model.id).json()
    assert [warning["code"] for warning in job["warnings"]] == ["NETWORK_NOT_RUN"]
    assert job["configuration"]["structures"] == ["weights"]
    for body, pointer in (
        ({"dataset_id": dataset.id}, "/dataset_id"),
        ({"structures": ["layers"]}, "/structures/0"),
        ({"criteria": [{"kind": "random"}]}, "/criteria/0"),
    ):
        answer = inspect(client, model.id, body)
        assert (answer.status_code, pointer in [e["pointer"] for e in answer.json()["errors"]]) == (422, True), body


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"model_id": "mdl_" + "0" * 26}, "INVALID_SPEC", "/model_id"),
        ({"criteria": [{"kind": "movement"}]}, "INVALID_SPEC", "/criteria/0"),
        ({"criteria": [{"kind": "magnitude"}, {"kind": "magnitude", "norm": 2}]}, "INVALID_SPEC", "/criteria"),
        ({"structures": ["vocabulary"]}, "INVALID_SPEC", "/structures"),
        ({"ratios": [1.0]}, "INVALID_SPEC", "/ratios/0"),
        ({"criteria": [{"kind": "magnitude"}, {"kind": "taylor"}]}, "DATASET_REQUIRED", "/dataset_id"),
        ({"task": "translation"}, "TASK_MISMATCH", "/task"),
        ({"max_length": 8000}, "TOO_LONG", "/max_length"),
        (
            {"criteria": [{"kind": "similarity"}], "structures": ["weights"]},
            "CRITERION_NOT_SUPPORTED",
            "/criteria/0",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    client: TestClient, database: Database, body: dict[str, Any], code: str, pointer: str
) -> None:
    store(database, model := a_model())
    answer = inspect(client, model.id, body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["errors"][0]["pointer"]) == (422, code, pointer)
    assert "/pruning" not in answer.text


def test_narrower_embeddings_need_pairs_to_be_judged_by(client: TestClient, database: Database) -> None:
    pairs, alone = (
        a_dataset(task="sentence-embedding", labels={"pairs": pairs, "scores": False}) for pairs in (True, False)
    )
    store(database, model := a_model(task=None, facts={"has_head": False, "labels": None}), pairs, alone)
    body = {"structures": ["layers", "hidden_size"], "criteria": [{"kind": "magnitude"}]}
    assert inspect(client, model.id, body | {"dataset_id": pairs.id}).status_code == 202
    errors = inspect(client, model.id, body | {"dataset_id": alone.id}).json()["errors"]
    assert [error["pointer"] for error in errors] == ["/structures/1"]


def test_a_data_set_for_another_task_is_refused_once(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), dataset := a_dataset(task="translation"))
    problem = inspect(client, model.id, {"dataset_id": dataset.id}).json()
    assert [(error["pointer"]) for error in problem["errors"]] == ["/dataset_id"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [({"state": "uploading"}, 409, "MODEL_NOT_READY"), ({"tenant": "other"}, 404, "NOT_FOUND")],
)
def test_a_model_that_cannot_be_inspected(
    client: TestClient, database: Database, changes: dict[str, Any], status: int, code: str
) -> None:
    model = store(database, a_model(**changes))
    answer = inspect(client, model.id)
    assert (answer.status_code, answer.json()["code"], answer.json()["errors"]) == (status, code, [])


def test_reading_is_not_enough(client: TestClient, database: Database) -> None:
    model = store(database, a_model())
    with database.session_scope() as session:
        key = issue_key(session, tenant=TENANT, name="reader", scopes=["read"])[1]
    answer = inspect(client, model.id, Authorization=f"Bearer {key}")
    assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING")


@on_databases
def test_what_was_found_is_shown_with_the_job_and_no_model(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    store(database, model := a_model())
    job_id = inspect(client, model.id).json()["id"]
    page, digest = b"<!doctype html>", hashlib.sha256(b"<!doctype html>").hexdigest()
    (tmp_path / "page").write_bytes(page)
    key = f"artifacts/{job_id}/1/report/report.html"
    _app(client).state.storage.put(key, tmp_path / "page")
    with database.session_scope(read_only=True) as session:
        job = session.get_one(Job, job_id)
    finish(database, job_id, an_artifact(job, "report/report.html", page, digest, key))
    shown = client.get(f"/v1/jobs/{job_id}").json()
    assert (shown["status"], shown["result"]) == ("succeeded", None)
    report = f"http://127.0.0.1:8400/v1/jobs/{job_id}/report"
    assert shown["inspection"] == {**FINDINGS, "report_url": report}
    assert shown["links"]["report"] == report and "model" not in shown["links"]
    assert client.get(f"/v1/jobs/{job_id}/report").content == page
    assert client.get(f"/v1/jobs/{job_id}/model").json()["code"] == "NO_MODEL"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


@on_databases
def test_lists_tell_kinds_apart_and_leave_findings_out(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    inspected, compressed = inspect(client, model.id).json()["id"], submitted(database).id
    finish(database, inspected)

    def listed(**params: str) -> list[tuple[str, str]]:
        return [(job["id"], job["kind"]) for job in client.get("/v1/jobs", params=params).json()["data"]]

    assert listed() == [(compressed, "compression"), (inspected, "inspection")]
    assert listed(kind="inspection") == [(inspected, "inspection")]
    assert listed(kind="compression") == [(compressed, "compression")]
    assert client.get("/v1/jobs", params={"kind": "other"}).status_code == 422
    rows = client.get("/v1/jobs", params={"kind": "inspection"}).json()["data"]
    assert [(row["status"], row["inspection"]) for row in rows] == [("succeeded", None)]


def test_an_inspection_is_cancelled_and_holds_its_model_as_any_job(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    job_id = inspect(client, model.id).json()["id"]
    assert client.delete(f"/v1/models/{model.id}").json()["code"] == "MODEL_IN_USE"
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert client.delete(f"/v1/models/{model.id}").status_code == 204


def test_the_document_describes_the_order_and_what_is_found(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    route = document["paths"]["/v1/models/{model_id}/inspections"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/InspectionSpec"}
    schemas = document["components"]["schemas"]
    assert "model_id" not in schemas["InspectionSpec"]["properties"]
    assert {"near_zero", "scored", "alike", "highlights"} <= set(schemas["InspectionView"]["properties"])
