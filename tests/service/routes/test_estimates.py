"""Estimates through HTTP: what they say, and that they refuse what a job would be refused for."""

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service.db import Database
from service.tables import Job, Model
from tests.databases import on_databases
from tests.service.estimate.test_work import SIZES
from tests.service.resolve.orders import TAYLOR, WEIGHTS
from tests.service.samples import a_dataset, a_model, a_spec, a_worker, store


@pytest.fixture
def model(database: Database) -> Model:
    """MiniLM's sizes, which can be told."""
    return store(database, a_model(structure=SIZES, parameters=22_713_986, size=90_000_000))


def estimated(client: TestClient, model: Model, **changes: Any) -> dict[str, Any]:
    """The estimate of an order that is taken."""
    answer = client.post("/v1/jobs:estimate", json=a_spec(model.id, **changes))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def with_room(name: str = "w1", *kinds: str) -> Any:
    """A worker with 64 GB on every device."""
    worker = a_worker(name, *kinds)
    worker.devices = [device | {"memory": 64 << 30} for device in worker.devices]
    return worker


@on_databases
def test_an_estimate_tells_everything_and_stores_nothing(client: TestClient, database: Database, model: Model) -> None:
    dataset = store(database, a_dataset())
    store(database, with_room())
    found = estimated(client, model, dataset_id=dataset.id, pruning={"cuts": [TAYLOR]}, finetuning={"epochs": 1})
    assert 0 < found["seconds"]["low"] < found["seconds"]["high"]
    assert 22_713_986 * 24 < found["memory"] < 4e9
    assert found["disk"] > 90_000_000
    halved = 22_713_986 - 6 * 768 * 2 * 384
    assert found["expected"]["parameters"]["low"] <= halved <= found["expected"]["parameters"]["high"]
    assert found["expected"]["size"]["high"] == 4 * found["expected"]["parameters"]["high"]
    assert found["expected"]["flops"]["low"] < found["expected"]["flops"]["high"]
    assert (found["fits"], found["reasons"]) == (True, [])
    assert (found["device"], found["learned_from"]) == ("cpu", 0)
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_id": "ds_unknown"},
        {"model_id": "mdl_unknown"},
        {"finetuning": {"epochs": 1}},
        {"pruning": {"cuts": []}},
        {"task": "translation"},
        {"unknown": 1},
        {"webhook_url": "https://127.0.0.1/"},
        {"acceptance": [{"metric": "latency", "min_speedup": 2.0, "runtime": "onnxruntime"}]},
    ],
)
def test_it_refuses_what_a_job_is_refused_for(client: TestClient, model: Model, changes: dict[str, Any]) -> None:
    job, estimate = (client.post(path, json=a_spec(model.id) | changes) for path in ("/v1/jobs", "/v1/jobs:estimate"))
    assert job.status_code == estimate.status_code >= 400
    for field in ("code", "detail", "errors"):
        assert job.json()[field] == estimate.json()[field]


def test_what_is_in_the_way_is_told(
    client: TestClient, database: Database, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reasons(**changes: Any) -> list[str]:
        found = estimated(client, model, **changes)
        assert found["fits"] is not bool(found["reasons"])
        return [reason["code"] for reason in found["reasons"]]

    assert reasons() == ["NO_WORKER"]
    store(database, a_worker("small"))
    assert reasons() == ["MEMORY_TOO_SMALL"]
    store(database, with_room("large", "cpu"))
    assert reasons() == []
    assert reasons(timeout=1) == ["TIMEOUT_TOO_SHORT"]
    app = client.app
    assert isinstance(app, FastAPI)
    monkeypatch.setattr(app.state.storage, "free_bytes", lambda: 1000)
    assert reasons() == ["DISK_TOO_SMALL"]
    monkeypatch.setattr(app.state.storage, "free_bytes", lambda: None)
    assert reasons() == []


def test_a_job_that_may_choose_goes_to_the_gpu(client: TestClient, database: Database, model: Model) -> None:
    store(database, with_room("w1", "cpu", "cuda"))
    assert [estimated(client, model, device=device)["device"] for device in ("auto", "cpu", "cuda")] == [
        "cuda",
        "cpu",
        "cuda",
    ]


def test_what_cannot_be_told_is_null(client: TestClient, database: Database) -> None:
    odd = store(database, a_model(parameters=10**9))
    assert estimated(client, odd)["expected"] == {"parameters": None, "size": None, "flops": None}
    zeros = estimated(client, odd, pruning={"cuts": [WEIGHTS]})["expected"]
    assert zeros == {
        "parameters": {"low": 10**9, "high": 10**9},
        "size": {"low": 4 * 10**9, "high": 4 * 10**9},
        "flops": None,
    }
