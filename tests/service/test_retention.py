"""Files that are kept no more: what goes, what stays, and what the API says about it afterwards."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import jobs, lifecycle, retention
from service.db import Database
from service.tables import Job, Model, utc_now
from tests.databases import on_databases
from tests.service.published import FILES, Published, publish
from tests.service.samples import a_job, a_spec, submitted


@pytest.fixture(autouse=True)
def _no_reconciler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's own loop would be faster now and then."""
    monkeypatch.setattr("service.reconciler.Reconciler.turn", lambda self: None)


def published(client: TestClient, folder: Path, seconds: float, **kinds: str) -> Published:
    """A finished job whose files are kept until so many seconds from now."""
    app: Any = client.app
    made = publish(app, folder, **kinds)
    with app.state.database.session_scope() as session:
        session.get_one(Job, made.job.id).expires_at = utc_now() + timedelta(seconds=seconds)
    return made


def expire(client: TestClient) -> list[str]:
    """One look at what is due."""
    app: Any = client.app
    return retention.expire(app.state.database, app.state.storage)


def stored(client: TestClient, job_id: str) -> list[str]:
    """What lies in storage for a job."""
    storage = client.app.state.storage  # type: ignore[attr-defined] # the type of an ASGI app has no state
    return [key for folder in ("artifacts", "checkpoints") for key in storage.list(f"{folder}/{job_id}")]


@on_databases
def test_bytes_go_when_their_time_is_over_and_not_before(client: TestClient, tmp_path: Path) -> None:
    due, later = published(client, tmp_path, -1), published(client, tmp_path, 60)
    storage = client.app.state.storage  # type: ignore[attr-defined]
    (tmp_path / "staged").write_text("x")
    storage.put(f"checkpoints/{due.job.id}/1/a/state", tmp_path / "staged")
    assert expire(client) == [due.job.id]
    assert stored(client, due.job.id) == []
    assert len(stored(client, later.job.id)) == len(FILES)
    assert expire(client) == []


@on_databases
def test_what_a_failed_job_saved_goes_in_time(client: TestClient, database: Database, tmp_path: Path) -> None:
    storage = client.app.state.storage  # type: ignore[attr-defined]
    failed = [submitted(database) for _ in range(3)]
    for job in failed:
        (tmp_path / "staged").write_text("x")
        storage.put(f"checkpoints/{job.id}/1/a/state", tmp_path / "staged")
        with database.session_scope() as session:
            held = jobs.claim(session, job.id, "w1", 60.0)
            assert held is not None
            jobs.keep_checkpoint(
                session, held, {"key": f"checkpoints/{job.id}/1/a", "files": [], "step": 1, "token": 1}
            )
            jobs.fail(session, held, {"code": "BAD_DATA", "message": "m", "blame": "user", "retryable": False}, 1)
            session.get_one(Job, job.id).finished_at = utc_now() - timedelta(seconds=60)
    old, again, new = (job.id for job in failed)
    with database.session_scope() as session:
        session.get_one(Job, new).finished_at = utc_now()
        lifecycle.retry(session, session.get_one(Job, again))
    assert retention.drop_checkpoints(database, storage, 30) == [old]
    assert stored(client, old) == [] and len(stored(client, again)) == len(stored(client, new)) == 1
    told = client.get(f"/v1/jobs/{old}").json()
    assert (told["status"], told["checkpoint"]) == ("failed", None)
    assert client.get(f"/v1/jobs/{old}/events").json()["data"][-1]["type"] == "job.checkpoint_expired"
    assert retention.drop_checkpoints(database, storage, 30) == []


@on_databases
def test_rows_stay_and_tell(client: TestClient, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    before = client.get(f"/v1/jobs/{made.job.id}")
    expire(client)
    answer = client.get(f"/v1/jobs/{made.job.id}")
    job = answer.json()
    assert job["status"] == "succeeded" and job["result"] == before.json()["result"]
    assert answer.headers["etag"] != before.headers["etag"]
    assert before.json()["expired_at"] is None and job["expires_at"] < job["expired_at"]
    artifacts = client.get(f"/v1/jobs/{made.job.id}/artifacts").json()["data"]
    assert {row["path"] for row in artifacts} == set(FILES)
    assert {(row["expires_at"], row["expired_at"]) for row in artifacts} == {(job["expires_at"], job["expired_at"])}
    assert client.get(f"/v1/jobs/{made.job.id}/events").json()["data"][-1]["type"] == "job.expired"
    assert client.get(f"/v1/jobs/{made.job.id}/metrics").status_code == 200
    model = client.get(f"/v1/models/{made.model.id}").json()
    assert (model["state"], model["family"], model["parameters"]) == ("expired", "bert", 1000)
    assert model["supported"]["structures"] == [] and model["files"]
    assert client.get("/v1/models").json()["data"][0]["state"] == "expired"


@on_databases
def test_bytes_that_went_are_410_and_say_how_to_keep_them(client: TestClient, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    expire(client)
    artifact = made.artifacts["report/report.html"]
    for url in (
        f"/v1/artifacts/{artifact.id}/content",
        f"/v1/jobs/{made.job.id}/model",
        f"/v1/jobs/{made.job.id}/report",
        f"/v1/models/{made.model.id}/archive",
        f"/v1/models/{made.model.id}/files/config.json",
    ):
        answer = client.get(url)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["title"]) == (410, "EXPIRED", "Gone")
        assert problem["expired_at"] in problem["detail"] and "expires_after" in problem["detail"]
        assert url.endswith("/report") or client.head(url).status_code == 410


@on_databases
def test_an_expired_model_takes_no_job(client: TestClient, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    expire(client)
    answer = client.post("/v1/jobs", json=a_spec(made.model.id))
    assert (answer.status_code, answer.json()["code"]) == (409, "MODEL_NOT_READY")
    assert "has expired" in answer.json()["detail"]


@on_databases
def test_a_model_that_a_job_needs_is_kept_until_the_job_has_ended(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    made, other = published(client, tmp_path, -1), published(client, tmp_path, -1)
    with database.session_scope() as session:
        needing = jobs.submit(session, a_job(made.model.id))
    assert expire(client) == [other.job.id]
    assert len(stored(client, made.job.id)) == len(FILES)
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, needing.id))
    assert expire(client) == [made.job.id]
    # A failed or cancelled job whose model is gone is not tried again.
    answer = client.post(f"/v1/jobs/{needing.id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "INPUT_DELETED")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_comes_at_the_same_moment_wins(client: TestClient, database: Database, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    expired: list[list[str]] = []
    with database.session_scope() as session:
        session.get_one(Model, made.model.id, with_for_update={"read": True})
        turn = threading.Thread(target=lambda: expired.append(expire(client)))
        turn.start()
        turn.join(0.5)
        assert turn.is_alive()
        jobs.submit(session, a_job(made.model.id))
    turn.join(10)
    assert expired == [[]]
    assert len(stored(client, made.job.id)) == len(FILES)


@on_databases
def test_a_storage_that_is_away_leaves_orphans_and_the_rows_are_right(
    client: TestClient, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = published(client, tmp_path, -1)

    def away(prefix: str) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.storage, "delete_prefix", away)  # type: ignore[attr-defined]
        assert expire(client) == [made.job.id]
    assert len(stored(client, made.job.id)) == len(FILES)
    assert client.get(f"/v1/jobs/{made.job.id}/model").status_code == 410


@on_databases
def test_a_job_that_is_asked_for_again_is_not_due(client: TestClient, database: Database, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    with database.session_scope() as session:
        session.get_one(Job, made.job.id).status = "queued"
    assert expire(client) == []


@on_databases
def test_a_deleted_model_stays_deleted(client: TestClient, database: Database, tmp_path: Path) -> None:
    made = published(client, tmp_path, -1)
    assert client.delete(f"/v1/models/{made.model.id}").status_code == 204
    assert expire(client) == [made.job.id]
    assert client.get(f"/v1/models/{made.model.id}").status_code == 404
    assert client.delete(f"/v1/jobs/{made.job.id}").status_code == 204
