"""Pause, resume, retry, clone and reuse over HTTP."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service import jobs, lifecycle
from service.db import Database
from service.jobs import Claim
from service.storage import Storage
from service.tables import Artifact, Job, Model, utc_now
from tests.databases import on_databases
from tests.service.published import publish
from tests.service.samples import RESULT, a_dataset, a_model, a_spec, a_worker, an_artifact, store, submitted

FATAL = {"code": "DIVERGED", "message": "m", "blame": "user", "retryable": False}


def app_of(client: TestClient) -> FastAPI:
    """The application that the client talks to."""
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def rung(client: TestClient) -> set[str]:
    """Jobs that were rung for."""
    waiting: set[str] = app_of(client).state.broker.waiting()
    return waiting


def claim(database: Database, job_id: str) -> Claim:
    """Take a job as a worker does."""
    with database.session_scope() as session:
        held = jobs.claim(session, job_id, "w1", 60)
    assert held is not None
    return held


def do(database: Database, step: Callable[..., Any], *arguments: Any) -> Any:
    """One step in one transaction."""
    with database.session_scope() as session:
        return step(session, *arguments)


def ask(client: TestClient, job_id: str, what: str, **body: Any) -> Any:
    """Ask something of a job; the answer with its status."""
    answer = client.post(f"/v1/jobs/{job_id}/{what}", **body)
    return answer.status_code, answer.json()


def finish(database: Database, job_id: str, status: str = "succeeded") -> None:
    """End a queued job with a model and a file."""
    held = claim(database, job_id)
    with database.session_scope() as session:
        job = session.get_one(Job, job_id)
        model = a_model(job_id=job_id)
        artifact = an_artifact(job, "onnx/model.onnx", b"x", "0" * 64, "k")
        assert jobs.finish(session, held, status, {**RESULT, "model_id": model.id}, model, [artifact])


def save(database: Database, storage: Storage, held: Claim, folder: Path) -> str:
    """Store a checkpoint of a running job; returns its key."""
    key = f"checkpoints/{held.job_id}/{held.token}/1"
    (folder / "saved").write_text("{}")
    storage.put(f"{key}/checkpoint.json", folder / "saved")
    checkpoint = {"key": key, "files": [], "step": 7, "token": held.token}
    assert do(database, jobs.keep_checkpoint, held, checkpoint)
    return key


@on_databases
def test_a_queued_job_pauses_at_once_and_goes_on(client: TestClient, database: Database) -> None:
    job = submitted(database)
    for _ in range(2):
        status, view = ask(client, job.id, "pause")
        assert (status, view["status"], view["queue"]["position"]) == (200, "paused", None)
    assert {"cancel", "resume", "clone"} <= view["links"].keys()
    assert not {"pause", "retry"} & view["links"].keys()
    assert client.get("/v1/jobs", params={"status": "paused"}).json()["data"][0]["id"] == job.id
    refused = client.delete(f"/v1/jobs/{job.id}")
    assert (refused.status_code, refused.json()["job_status"]) == (409, "paused")
    for _ in range(2):
        status, view = ask(client, job.id, "resume")
        assert (status, view["status"], view["queue"]["position"]) == (200, "queued", 1)
    assert rung(client) == {job.id}
    claim(database, job.id)
    assert ask(client, job.id, "resume")[0] == 200, "a worker may have been quick"


@on_databases
def test_a_running_job_pauses_when_its_worker_has_saved(client: TestClient, database: Database, tmp_path: Path) -> None:
    held = claim(database, submitted(database).id)
    for _ in range(2):
        assert ask(client, held.job_id, "pause")[1]["status"] == "pausing"
    assert ask(client, held.job_id, "resume")[1]["job_status"] == "pausing"
    assert do(database, jobs.beat, held, 60) == "pausing"
    save(database, app_of(client).state.storage, held, tmp_path)
    assert do(database, jobs.confirm_paused, held)
    view = client.get(f"/v1/jobs/{held.job_id}").json()
    assert (view["status"], view["checkpoint"], view["attempts"][0]["outcome"]) == ("paused", {"step": 7}, "paused")
    assert do(database, jobs.beat, held, 60) is None


@on_databases
def test_a_job_that_was_through_when_asked_to_pause_ends_well(client: TestClient, database: Database) -> None:
    held = claim(database, submitted(database).id)
    ask(client, held.job_id, "pause")
    assert do(database, jobs.finish, held, "succeeded", {**RESULT, "model_id": None}, None, [])
    assert client.get(f"/v1/jobs/{held.job_id}").json()["status"] == "succeeded"


@on_databases
@pytest.mark.parametrize(
    ("step", "status"),
    [
        (lambda session, held: jobs.fail(session, held, FATAL | {"code": "NO_SPACE", "retryable": True}, 3), "paused"),
        (lambda session, held: jobs.fail(session, held, FATAL, 3), "failed"),
        (jobs.give_back, "paused"),
    ],
    ids=["passing fault", "lasting fault", "leaving worker"],
)
def test_what_happens_while_a_job_is_pausing(
    client: TestClient, database: Database, step: Callable[..., Any], status: str
) -> None:
    held = claim(database, submitted(database).id)
    ask(client, held.job_id, "pause")
    assert not do(database, step, held)
    assert client.get(f"/v1/jobs/{held.job_id}").json()["status"] == status


@on_databases
def test_a_worker_that_dies_while_a_job_is_pausing_leaves_it_paused(client: TestClient, database: Database) -> None:
    held = claim(database, submitted(database).id)
    ask(client, held.job_id, "pause")
    with database.session_scope() as session:
        session.get_one(Job, held.job_id).lease_until = 0.0
    assert do(database, jobs.reconcile, 3) == []
    view = client.get(f"/v1/jobs/{held.job_id}").json()
    assert (view["status"], view["attempts"][0]["outcome"]) == ("paused", "worker_lost")


@on_databases
def test_a_paused_or_pausing_job_can_be_cancelled(client: TestClient, database: Database, tmp_path: Path) -> None:
    storage = app_of(client).state.storage
    held = claim(database, submitted(database).id)
    save(database, storage, held, tmp_path)
    ask(client, held.job_id, "pause")
    do(database, jobs.confirm_paused, held)
    view = ask(client, held.job_id, "cancel")[1]
    assert (view["status"], view["checkpoint"]) == ("cancelled", None)
    assert list(storage.list("checkpoints")) == []
    other = claim(database, submitted(database).id)
    ask(client, other.job_id, "pause")
    assert ask(client, other.job_id, "cancel")[1]["status"] == "cancelling"
    assert do(database, jobs.confirm_cancelled, other)


@on_databases
def test_what_a_state_does_not_allow_is_refused_with_it(client: TestClient, database: Database) -> None:
    ended, running, waiting = submitted(database), submitted(database), submitted(database)
    finish(database, ended.id)
    claim(database, running.id)
    for job, what, code in (
        (ended, "pause", "JOB_NOT_RUNNING"),
        (ended, "resume", "JOB_NOT_PAUSED"),
        (ended, "retry", "JOB_NOT_FAILED"),
        (running, "resume", "JOB_NOT_PAUSED"),
        (running, "retry", "JOB_NOT_FAILED"),
        (waiting, "resume", "JOB_NOT_PAUSED"),
    ):
        status, problem = ask(client, job.id, what)
        assert (status, problem["code"]) == (409, code)
        assert problem["job_status"] == client.get(f"/v1/jobs/{job.id}").json()["status"]
    assert ask(client, "job_" + "0" * 26, "pause")[0] == 404


@on_databases
def test_a_failed_job_is_tried_again_under_its_id(client: TestClient, database: Database, tmp_path: Path) -> None:
    storage = app_of(client).state.storage
    held = claim(database, submitted(database).id)
    key = save(database, storage, held, tmp_path)
    do(database, jobs.fail, held, FATAL, 3)
    failed = client.get(f"/v1/jobs/{held.job_id}").json()
    assert failed["error"]["advice"].startswith("Clone it with a lower learning_rate")
    assert (failed["checkpoint"], "retry" in failed["links"]) == ({"step": 7}, True)
    for _ in range(2):
        status, view = ask(client, held.job_id, "retry")
        assert (status, view["status"], view["error"], view["finished_at"]) == (200, "queued", None, None)
    assert view["checkpoint"] == {"step": 7} and list(storage.list(key))
    assert [attempt["outcome"] for attempt in view["attempts"]] == ["failed"]
    again = claim(database, held.job_id)
    assert (again.attempt, again.token) == (1, 2)
    do(database, jobs.fail, again, FATAL, 3)
    view = ask(client, held.job_id, "retry", json={"from": "start"})[1]
    assert (view["status"], view["checkpoint"], list(storage.list("checkpoints"))) == ("queued", None, [])
    assert len(view["attempts"]) == 2


def test_a_cancelled_job_is_tried_again_while_its_model_is_there(client: TestClient, database: Database) -> None:
    job = submitted(database)
    ask(client, job.id, "cancel")
    assert ask(client, job.id, "retry", json={"from": "nowhere"})[0] == 422
    assert ask(client, job.id, "retry", json={"since": "start"})[0] == 422
    assert ask(client, job.id, "retry", content=b"{", headers={"Content-Type": "application/json"})[0] == 400
    assert ask(client, job.id, "retry")[1]["status"] == "queued"
    ask(client, job.id, "cancel")
    with database.session_scope() as session:
        session.get_one(Model, job.model_id).deleted_at = utc_now()
    status, problem = ask(client, job.id, "retry")
    assert (status, problem["code"], problem["job_status"]) == (409, "INPUT_DELETED", "cancelled")


def gives_back(database: Database, held: Claim) -> None:
    do(database, jobs.give_back, held)


def fails_and_is_deleted(database: Database, held: Claim) -> None:
    do(database, jobs.fail, held, FATAL, 3)
    do(database, lambda session: session.execute(delete(Job).where(Job.id == held.job_id)))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("happens", [gives_back, fails_and_is_deleted])
@pytest.mark.parametrize(("verb", "leads_to"), [("cancel", "cancelling"), ("pause", "pausing")])
def test_what_happens_to_a_job_meanwhile_waits(
    client: TestClient,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    leads_to: str,
    happens: Callable[[Database, Claim], None],
) -> None:
    job = submitted(database)
    held, real = claim(database, job.id), jobs.change
    aside: list[Thread] = []

    def change(session: Session, where: ColumnElement[bool], **values: Any) -> bool:
        won = real(session, where, **values)
        if not aside:  # between what is tried for a queued job and what for a running one
            aside.append(Thread(target=happens, args=(database, held)))
            aside[0].start()
            aside[0].join(0.5)
        return won

    for module in (jobs, lifecycle):
        monkeypatch.setattr(module, "change", change)
    status, answer = ask(client, job.id, verb)
    aside[0].join()
    assert (status, answer["status"]) == (200, leads_to)


@on_databases
def test_reuse_answers_with_a_job_that_gave_the_same(client: TestClient, database: Database) -> None:
    store(database, model := a_model(), copy := a_model(), dataset := a_dataset(), a_worker())
    spec = a_spec(model.id, dataset_id=dataset.id, reuse=True)
    headers = {"Idempotency-Key": "reuse"}
    first = client.post("/v1/jobs", json=spec)
    assert first.status_code == 202 and len(first.json()["fingerprint"]) == 64
    done = first.json()["id"]
    finish(database, done)
    aside = {"name": "other", "metadata": {"a": "b"}, "priority": 5, "timeout": 9, "expires_after": 60}
    for order in (spec, spec | aside, spec | {"model_id": copy.id}):
        known = client.post("/v1/jobs", json=order)
        assert (known.status_code, known.json()["id"]) == (200, done)
        assert known.headers["location"].endswith(f"/v1/jobs/{done}")
    kept, replayed = (client.post("/v1/jobs", json=spec, headers=headers) for _ in range(2))
    assert (replayed.status_code, replayed.content) == (200, kept.content)
    for order in (spec | {"seed": 1}, spec | {"reuse": False}, spec | {"dataset_id": None}):
        assert client.post("/v1/jobs", json=order).status_code == 202
    assert ask(client, done, "clone")[0] == 202
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 5


@pytest.mark.parametrize("loss", ["model", "artifacts", "expired", "foreign", "rejected"])
def test_what_is_no_longer_there_is_not_reused(client: TestClient, database: Database, loss: str) -> None:
    store(database, model := a_model(), a_worker())
    spec = a_spec(model.id, reuse=True)
    done = client.post("/v1/jobs", json=spec).json()["id"]
    finish(database, done, "rejected" if loss == "rejected" else "succeeded")
    with database.session_scope() as session:
        job = session.get_one(Job, done)
        if loss == "model":
            session.scalars(select(Model).where(Model.job_id == done)).one().deleted_at = utc_now()
        elif loss == "artifacts":
            session.delete(session.scalars(select(Artifact).where(Artifact.job_id == done)).one())
        elif loss == "expired":
            job.expires_at = utc_now() - timedelta(seconds=1)
        elif loss == "foreign":
            job.tenant = "other"
    assert client.post("/v1/jobs", json=spec).status_code == 202


@on_databases
@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_every_end_tells_when_its_bytes_go(client: TestClient, database: Database, end: str) -> None:
    store(database, model := a_model(), a_worker())
    job_id = client.post("/v1/jobs", json=a_spec(model.id, expires_after=90)).json()["id"]
    if end == "succeeded":
        finish(database, job_id)
    elif end == "failed":
        do(database, jobs.fail, claim(database, job_id), FATAL, 3)
    else:
        ask(client, job_id, "cancel")
    with database.session_scope(read_only=True) as session:
        job = session.get_one(Job, job_id)
    assert job.finished_at is not None and job.expires_at == job.finished_at + timedelta(seconds=90)
    if end != "succeeded":
        ask(client, job_id, "retry")
        with database.session_scope(read_only=True) as session:
            assert session.get_one(Job, job_id).expires_at is None


@pytest.mark.parametrize("seconds", [59, -1, 60.5, "60", 10**12])
def test_when_bytes_go_is_said_in_seconds_from_a_minute_on(
    client: TestClient, database: Database, seconds: Any
) -> None:
    store(database, model := a_model())
    answer = client.post("/v1/jobs", json=a_spec(model.id, expires_after=seconds))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/expires_after")


def test_a_job_tells_which_request_made_it(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    answer = client.post("/v1/jobs", json=a_spec(model.id), headers={"X-Request-Id": "nightly-7"})
    assert answer.json()["request_id"] == "nightly-7"


def test_a_deleted_job_leaves_no_checkpoint(client: TestClient, database: Database, tmp_path: Path) -> None:
    storage = app_of(client).state.storage
    held = claim(database, submitted(database).id)
    save(database, storage, held, tmp_path)
    do(database, jobs.fail, held, FATAL, 3)
    assert client.delete(f"/v1/jobs/{held.job_id}").status_code == 204
    assert list(storage.list("checkpoints")) == []


def test_links_name_what_is_possible(client: TestClient, tmp_path: Path) -> None:
    done = publish(app_of(client), tmp_path).job
    links = client.get(f"/v1/jobs/{done.id}").json()["links"]
    assert "clone" in links and not {"pause", "resume", "retry", "cancel"} & links.keys()
