"""Health, readiness, counters and capabilities."""

import time

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient

from service.broker import Broker
from service.catalog import FAMILIES
from service.db import Database
from service.readiness import AHEAD, BROKER, DATABASE, SPACE, STORAGE, WORKER
from service.routes.operations import WITHOUT_SANDBOX
from service.specs import CRITERIA_OF
from tests.databases import on_databases
from tests.service.samples import a_worker, store, submitted


def _app(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def test_an_idle_process_is_alive(anonymous_client: TestClient) -> None:
    assert anonymous_client.get("/healthz").json() == {"status": "ok"}


def test_readiness_warns_of_workers_without_a_sandbox_and_of_no_others(
    anonymous_client: TestClient, database: Database
) -> None:
    confined = a_worker("w1")
    confined.sandbox = "bubblewrap+seccomp+gpu"
    store(database, confined)
    ready = anonymous_client.get("/readyz").json()
    assert (ready["sandbox"], ready["warnings"]) == (["bubblewrap+seccomp+gpu"], [])
    store(database, a_worker("w2"))
    ready = anonymous_client.get("/readyz").json()
    assert (ready["sandbox"], ready["warnings"]) == (["bubblewrap+seccomp+gpu", "process"], [WITHOUT_SANDBOX])


def test_readiness_tells_of_a_newer_database_and_of_a_clock_that_is_wrong(
    anonymous_client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined = a_worker("w1")
    confined.sandbox = "bubblewrap"
    store(database, confined)
    with database.session_scope() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    monkeypatch.setattr("service.clocks.time.time", lambda: time.time_ns() / 1e9 - 120)
    newer, clock = anonymous_client.get("/readyz").json()["warnings"][::-1]
    assert newer == AHEAD
    assert clock == "The clock of this process is 120 s behind the database's."


def test_readiness_names_what_is_missing(
    anonymous_client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _app(anonymous_client)
    without_worker = anonymous_client.get("/readyz")
    assert (without_worker.status_code, without_worker.json()["missing"]) == (503, "worker")
    store(database, a_worker("w1"))
    ready = anonymous_client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"] == {"database": True, "schema": True, "broker": True, "storage": True, "worker": True}
    assert (ready.json()["sandbox"], ready.json()["warnings"]) == (["process"], [WITHOUT_SANDBOX])
    assert list(app.state.storage.list("probe")) == []

    def no_space(key: str, source: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app.state.storage, "put", no_space)
    working = app.state.broker, app.state.database
    app.state.broker = Broker("redis://127.0.0.1:1/0")
    app.state.database = Database("postgresql://nobody@127.0.0.1:1/none")
    broken = anonymous_client.get("/readyz")
    app.state.broker.close()
    app.state.broker, app.state.database = working
    assert (broken.status_code, broken.json()["code"]) == (503, "NOT_READY")
    assert broken.json()["missing"] == "database, broker, storage, worker"
    for remedy in (DATABASE, BROKER, STORAGE, WORKER):
        assert remedy in broken.json()["detail"]


@on_databases
def test_readiness_sees_that_migrations_are_missing(anonymous_client: TestClient, database: Database) -> None:
    store(database, a_worker("w1"))
    with database.session_scope() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    old = anonymous_client.get("/readyz").json()
    assert (old["missing"], "secateur migrate" in old["detail"]) == ("schema, worker", True)
    with database.session_scope() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert anonymous_client.get("/readyz").status_code == 200, "a newer release has migrated already"


def test_readiness_sees_that_the_disk_is_filling(
    anonymous_client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(database, a_worker("w1"))
    monkeypatch.setattr(_app(anonymous_client).state.storage, "free_bytes", lambda: 1000)
    full = anonymous_client.get("/readyz").json()
    assert full["missing"] == "storage"
    assert SPACE in full["detail"]


def test_counters_are_by_route_and_status(client: TestClient, database: Database) -> None:
    job = submitted(database)
    client.get(f"/v1/jobs/{job.id}")
    client.request("BREW", "/v1/jobs")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'secateur_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in lines
    assert 'secateur_jobs{status="queued"} 1.0' in lines
    assert 'secateur_jobs{status="failed"} 0.0' in lines
    assert job.id not in answer.text
    assert "BREW" not in answer.text


def test_capabilities_say_what_the_specs_and_the_catalog_say(client: TestClient, database: Database) -> None:
    store(database, a_worker("w1", "cpu", "cuda"), a_worker("dead", lives=0))
    answer = client.get("/v1/capabilities").json()
    assert {family["name"] for family in answer["families"]} == set(FAMILIES)
    assert {row["name"]: set(row["criteria"]) for row in answer["structures"]} == CRITERIA_OF
    for row in answer["families"]:
        family = FAMILIES[row["name"]]
        assert row["tasks"] == list(family.tasks)
        assert (row["structures"], row["stock_structures"]) == (list(family.structures), list(family.stock_structures))
        assert set(row["exports"]) <= set(answer["exports"])
        assert set(row["structures"]) | set(row["reasons"]) == set(CRITERIA_OF)
    patterns = {row["name"]: row["patterns"] for row in answer["structures"]}
    assert patterns == {name: [] for name in CRITERIA_OF} | {"weights": ["unstructured", "2:4", "4:8", "block"]}
    assert answer["other_families"] == {
        "tasks": answer["tasks"],
        "structures": ["weights"],
        "criteria": ["magnitude"],
        "exports": ["huggingface"],
    }
    assert [worker["name"] for worker in answer["workers"]] == ["w1"]
    assert {device["kind"] for device in answer["workers"][0]["devices"]} == {"cpu", "cuda"}
    assert answer["limits"]["json_body"] == 1 << 20
