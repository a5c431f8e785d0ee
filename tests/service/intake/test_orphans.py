import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.config import Settings
from service.db import Database
from service.ids import made_at, new_id
from service.intake.orphans import sweep, sweep_artifacts
from service.storage import open_storage
from service.tables import Job, Model, utc_now
from tests.databases import on_databases
from tests.service.published import publish
from tests.service.routes.test_models import post
from tests.service.samples import submitted
from tests.uploads import bert_files, tar


@pytest.fixture(autouse=True)
def _no_reconciler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's own loop would be faster now and then."""
    monkeypatch.setattr("service.reconciler.Reconciler.turn", lambda self: None)


def test_only_bytes_without_a_row_go(client: TestClient, settings: Settings, database: Database) -> None:
    kept, deleted = (post(client, tar(bert_files())).json()["id"] for _ in range(2))
    with database.session_scope() as session:
        session.get_one(Model, deleted).deleted_at = utc_now()
    storage = open_storage(settings.storage)
    orphan = new_id("ds")
    for key in (f"datasets/{orphan}/train.jsonl", "models/of-somebody-else/file"):
        source = settings.scratch / "source"
        source.write_text("x")
        storage.put(key, source)
    assert sweep(database, storage) == []
    assert sweep(database, storage, grace_seconds=-60) == [f"models/{deleted}", f"datasets/{orphan}"]
    left = {key.split("/")[1] for kind in ("models", "datasets") for key in storage.list(kind)}
    assert left == {kept, "of-somebody-else"}


@on_databases
def test_what_attempts_left_goes_when_no_row_owns_it(
    client: TestClient, settings: Settings, database: Database, tmp_path: Path
) -> None:
    app: Any = client.app
    done, expired = (publish(app, tmp_path).job for _ in range(2))
    waiting, fresh = submitted(database), publish(app, tmp_path).job
    long_ago = utc_now() - timedelta(days=2)
    with database.session_scope() as session:
        for job in (done, expired):
            session.get_one(Job, job.id).finished_at = long_ago
        session.get_one(Job, expired.id).expired_at = long_ago
    gone, young = "job_" + "0" * 26, new_id("job")
    left = [f"artifacts/{done.id}/2/a", f"artifacts/{gone}/1/a", f"artifacts/{fresh.id}/2/a"]
    for key in (*left, f"artifacts/{young}/1/a", f"artifacts/{waiting.id}/1/a", "artifacts/of-somebody-else/1/file"):
        (tmp_path / "source").write_text("x")
        app.state.storage.put(key, tmp_path / "source")
    swept = sweep_artifacts(database, app.state.storage)
    assert swept == sorted([f"artifacts/{done.id}/2", f"artifacts/{expired.id}/1", f"artifacts/{gone}/1"])
    kept = {"/".join(key.split("/")[:3]) for key in app.state.storage.list("artifacts")}
    assert {f"artifacts/{done.id}/1", f"artifacts/{fresh.id}/1", f"artifacts/{fresh.id}/2"} <= kept
    assert {f"artifacts/{young}/1", f"artifacts/{waiting.id}/1", "artifacts/of-somebody-else/1"} <= kept
    assert sweep_artifacts(database, app.state.storage) == []


def test_a_database_that_is_away_is_no_failure(settings: Settings, tmp_path: Path) -> None:
    storage = open_storage(settings.storage)
    source = tmp_path / "source"
    source.write_text("x")
    storage.put(f"models/{new_id('mdl')}/a", source)
    away: Any = Database(f"sqlite:///{tmp_path}/no/such/folder.db")
    storage.put(f"artifacts/{new_id('job')}/1/a", _file(tmp_path))
    assert sweep(away, storage, grace_seconds=-60) == []
    assert sweep_artifacts(away, storage, grace_seconds=-60) == []
    assert len(list(storage.list("models"))) == 1


def _file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


def test_ids_tell_their_time() -> None:
    assert abs(made_at(new_id("mdl")) - time.time()) < 60
