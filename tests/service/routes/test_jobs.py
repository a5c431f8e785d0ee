"""Jobs over HTTP: submit, look, wait, filter, cancel, delete."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import func, select
from starlette.testclient import TestClient
from starlette.types import Message

from service import jobs
from service import resolve as real
from service.broker import Broker
from service.db import Database
from service.ids import new_id
from service.job_view import job_view
from service.routes import submission
from service.routes.jobs import until_changed
from service.schemas import JobView
from service.tables import Artifact, Event, Job, Model, utc_now
from tests.databases import on_databases
from tests.service.published import publish
from tests.service.samples import a_dataset, a_model, a_spec, a_worker, store, submitted


def _app(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def _claim(database: Database, job_id: str) -> jobs.Claim:
    with database.session_scope() as session:
        claim = jobs.claim(session, job_id, "w1", 60)
    assert claim is not None
    return claim


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_few_jobs_are_stored_at_a_time(client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[int] = []
    most: list[int] = []

    def resolve(*arguments: Any) -> Any:
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.pop()
        return real.resolve(*arguments)

    monkeypatch.setattr("service.routes.submission.resolve", resolve)
    spec = a_spec(store(database, a_model()).id)
    with ThreadPoolExecutor(12) as crowd:
        answers = list(crowd.map(lambda _: client.post("/v1/jobs", json=spec).status_code, range(12)))
    assert answers == [202] * 12
    assert max(most) == submission.AT_ONCE


def test_an_order_does_not_wait_long_for_orders_that_do_not_end(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "TURN_SECONDS", 0.05)
    spec, turns = a_spec(store(database, a_model()).id), _app(client).state.submissions
    for _ in range(submission.AT_ONCE):
        turns.acquire()
    refused = client.post("/v1/jobs", json=spec)
    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
    turns.release()
    assert client.post("/v1/jobs", json=spec).status_code == 202


@on_databases
def test_a_submitted_job_is_stored_and_rung(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), dataset := a_dataset(), a_worker())
    spec = a_spec(model.id, dataset_id=dataset.id, metadata={"team": "search"}, priority=3)
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"http://127.0.0.1:8400/v1/jobs/{job['id']}"
    assert (job["status"], job["phase"], job["spec"], job["metadata"]) == ("queued", None, spec, {"team": "search"})
    assert job["configuration"]["max_length"] == 128
    assert job["queue"] == {"position": 1}
    assert [warning["code"] for warning in job["warnings"]] == ["MAGNITUDE_WEAK"]
    assert (job["attempts"], job["result"], job["error"], job["started_at"]) == ([], None, None, None)
    assert job["created_at"].endswith("Z")
    shown = client.get(f"/v1/jobs/{job['id']}")
    assert shown.json() == job
    broker: Broker = _app(client).state.broker
    assert broker.waiting() == {job["id"]}


def test_a_warning_of_the_door_outlives_the_attempts(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), a_worker())
    job_id = client.post("/v1/jobs", json=a_spec(model.id)).json()["id"]
    claim = _claim(database, job_id)
    with database.session_scope() as session:
        jobs.beat(session, claim, 60, warnings=[{"code": "INPUT_TRUNCATED", "message": "m"}])
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert [warning["code"] for warning in job["warnings"]] == ["MAGNITUDE_WEAK", "INPUT_TRUNCATED"]
    assert [(attempt["number"], attempt["worker"], attempt["outcome"]) for attempt in job["attempts"]] == [
        (1, "w1", None)
    ]


@on_databases
def test_validation_alone_checks_everything_and_stores_nothing(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    fine = client.post("/v1/jobs?validate_only=true", json=a_spec(model.id))
    assert fine.status_code == 200
    assert fine.json()["configuration"]["benchmark"] is None
    bad = a_spec(model.id, max_length=8000)
    alone, real = (client.post(f"/v1/jobs{query}", json=bad) for query in ("?validate_only=true", ""))
    assert {**alone.json(), "request_id": ""} == {**real.json(), "request_id": ""}
    assert (real.status_code, real.json()["code"]) == (422, "TOO_LONG")
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointer"),
    [
        ({"state": "uploading"}, 409, "MODEL_NOT_READY", "/model_id"),
        ({"tenant": "other"}, 404, "NOT_FOUND", "/model_id"),
        ({"deleted_at": utc_now()}, 404, "NOT_FOUND", "/model_id"),
    ],
)
def test_a_model_that_cannot_be_pruned(
    client: TestClient, database: Database, changes: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    model = store(database, a_model(**changes))
    answer = client.post("/v1/jobs", json=a_spec(model.id))
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["errors"][0]["pointer"]) == (status, code, pointer)


def test_a_foreign_data_set_is_unknown(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), foreign := a_dataset(tenant="other"))
    answers = [
        client.post("/v1/jobs", json=a_spec(model.id, dataset_id=dataset_id))
        for dataset_id in (foreign.id, new_id("ds"))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert [answer.json()["errors"][0]["pointer"] for answer in answers] == ["/dataset_id"] * 2


def test_bad_bodies_are_refused_by_kind(client: TestClient) -> None:
    def post(content: bytes, media_type: str = "application/json") -> tuple[int, str]:
        answer = client.post("/v1/jobs", content=content, headers={"Content-Type": media_type})
        return answer.status_code, answer.json()["code"]

    assert post(b"{") == (400, "MALFORMED_JSON")
    assert post(b"[]") == (422, "INVALID_SPEC")
    assert post(b"{}", "text/plain") == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert post(b" " * ((1 << 20) + 1)) == (413, "PAYLOAD_TOO_LARGE")
    assert post(b'{"webhook_url": "x"}') == (422, "INVALID_SPEC")
    target = b'{"pruning": {"target": {"metric": "latency", "ratio": 0.5}}}'
    assert post(target) == (422, "NOT_AVAILABLE")


def test_cuda_needs_a_worker_that_has_it(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    spec = a_spec(model.id, device="cuda")
    store(database, a_worker("dead", "cpu", lives=0))
    waiting = client.post("/v1/jobs", json=spec)
    assert (waiting.status_code, waiting.json()["warnings"][-1]["code"]) == (202, "NO_WORKER")
    store(database, a_worker("alive", "cpu"))
    assert client.post("/v1/jobs", json=spec).json()["code"] == "DEVICE_NOT_AVAILABLE"
    store(database, a_worker("gpu", "cpu", "cuda"))
    assert client.post("/v1/jobs", json=spec).status_code == 202


@on_databases
def test_the_queue_goes_by_priority_then_age(client: TestClient, database: Database) -> None:
    first, second, urgent = submitted(database), submitted(database), submitted(database, priority=9)
    places = {job["id"]: job["queue"]["position"] for job in client.get("/v1/jobs").json()["data"]}
    assert places == {urgent.id: 1, first.id: 2, second.id: 3}
    _claim(database, urgent.id)
    assert client.get(f"/v1/jobs/{urgent.id}").json()["queue"]["position"] is None
    assert client.get(f"/v1/jobs/{second.id}").json()["queue"]["position"] == 2


def test_an_unchanged_job_is_304(client: TestClient, database: Database) -> None:
    ahead, job = submitted(database), submitted(database)
    first = client.get(f"/v1/jobs/{job.id}")
    tag = first.headers["etag"]
    assert first.headers["retry-after"]
    for condition in (tag, f'"other", W/{tag}'):
        again = client.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    _claim(database, ahead.id)
    moved = client.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": tag})
    assert (moved.status_code, moved.json()["queue"]["position"]) == (200, 1)
    client.post(f"/v1/jobs/{job.id}/cancel")
    ended = client.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": moved.headers["etag"]})
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")
    assert "retry-after" not in ended.headers


def test_waiting_ends_when_the_status_changes(client: TestClient, database: Database) -> None:
    job = submitted(database)
    timer = threading.Timer(0.3, _claim, (database, job.id))
    timer.start()
    answer = client.get(f"/v1/jobs/{job.id}", headers={"Prefer": "respond-async, wait=60"})
    timer.join()
    assert answer.json()["status"] == "running"
    assert answer.headers["preference-applied"] == "wait=60"


def test_waiting_ends_with_its_time_and_at_once_for_a_finished_job(client: TestClient, database: Database) -> None:
    job = submitted(database)
    assert client.get(f"/v1/jobs/{job.id}", headers={"Prefer": "wait=1"}).json()["status"] == "queued"
    client.post(f"/v1/jobs/{job.id}/cancel")
    answer = client.get(f"/v1/jobs/{job.id}", headers={"Prefer": "wait=9999"})
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("cancelled", "wait=60")


def test_waiting_ends_when_the_client_leaves(database: Database) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def wait(view: JobView) -> None:
        request = Request({"type": "http", "headers": []}, receive)
        with anyio.fail_after(30):
            await until_changed(request, database, view, 60)

    job = submitted(database)
    with database.session_scope(read_only=True) as session:
        view = job_view(session, session.get_one(Job, job.id), "http://test")
    anyio.run(wait, view)


@on_databases
def test_lists_are_filtered_and_paged(client: TestClient, database: Database) -> None:
    made = [submitted(database, name=f"job-{index % 2}", metadata_={"n": str(index)}) for index in range(5)]
    _claim(database, made[0].id)

    def ids(**params: Any) -> list[str]:
        answer = client.get("/v1/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    newest = [job.id for job in reversed(made)]
    assert ids() == newest
    assert ids(status="running") == [made[0].id]
    assert ids(name="job-1") == [made[3].id, made[1].id]
    assert ids(model_id=made[2].model_id) == [made[2].id]
    assert ids(**{"metadata[n]": "4"}) == [made[4].id]
    assert ids(**{"metadata[n]": "4", "name": "job-1"}) == []
    assert ids(**{"metadata[none]": "4"}) == []
    middle = made[2].created_at.isoformat()
    assert ids(created_after=middle) == newest[:2]
    assert ids(created_before=middle) == newest[3:]
    page = client.get("/v1/jobs", params={"limit": 2}).json()
    walked = [job["id"] for job in page["data"]]
    while page["next_cursor"]:
        page = client.get("/v1/jobs", params={"limit": 2, "cursor": page["next_cursor"]}).json()
        walked += [job["id"] for job in page["data"]]
    assert walked == newest
    assert len(ids(limit=100000)) == 5


@pytest.mark.parametrize("query", ["cursor=%FF", "cursor=é", "limit=0", 'metadata["]=1', "metadata=1", "status=lost"])
def test_bad_filters_are_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/jobs?{query}").status_code == 422


@on_databases
def test_cancel_is_repeatable_until_another_end(client: TestClient, database: Database, tmp_path: Path) -> None:
    queued, running = submitted(database), submitted(database)
    _claim(database, running.id)
    for _ in range(2):
        assert client.post(f"/v1/jobs/{queued.id}/cancel").json()["status"] == "cancelled"
        answer = client.post(f"/v1/jobs/{running.id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    finished = publish(_app(client), tmp_path).job
    answer = client.post(f"/v1/jobs/{finished.id}/cancel")
    assert (answer.status_code, answer.json()["code"], answer.json()["job_status"]) == (
        409,
        "JOB_FINISHED",
        "succeeded",
    )


@on_databases
def test_a_finished_job_is_deleted_with_all_its_records(client: TestClient, database: Database, tmp_path: Path) -> None:
    app = _app(client)
    published = publish(app, tmp_path)
    url = f"/v1/jobs/{published.job.id}"
    answer = client.delete(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "MODEL_EXISTS")
    with database.session_scope() as session:
        session.get_one(Model, published.model.id).deleted_at = utc_now()
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert client.delete(url).status_code == 404
    assert list(app.state.storage.list(f"artifacts/{published.job.id}")) == []
    with database.session_scope(read_only=True) as session:
        for table in (Artifact, Event):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_an_unfinished_job_is_not_deleted(client: TestClient, database: Database) -> None:
    job = submitted(database)
    answer = client.delete(f"/v1/jobs/{job.id}")
    assert (answer.status_code, answer.json()["code"], answer.json()["job_status"]) == (
        409,
        "JOB_NOT_FINISHED",
        "queued",
    )
    assert client.get(f"/v1/jobs/{job.id}").status_code == 200


def test_a_result_shows_what_is_public(client: TestClient, tmp_path: Path) -> None:
    published = publish(_app(client), tmp_path, status="rejected")
    job = client.get(f"/v1/jobs/{published.job.id}").json()
    assert (job["status"], job["progress"]["fraction"]) == ("rejected", 1.0)
    result = job["result"]
    assert set(result) == {"model_id", "verdict", "before", "after", "report_url", "engine"}
    assert result["model_id"] == published.model.id
    assert result["report_url"] == job["links"]["report"]
    assert "cancel" not in job["links"]
