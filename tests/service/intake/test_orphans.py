import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.config import Settings
from service.db import Database
from service.ids import made_at, new_id
from service.intake.orphans import sweep
from service.storage import open_storage
from service.tables import Model, utc_now
from tests.service.routes.test_models import post
from tests.uploads import bert_files, tar


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


def test_a_database_that_is_away_is_no_failure(settings: Settings, tmp_path: Path) -> None:
    storage = open_storage(settings.storage)
    source = tmp_path / "source"
    source.write_text("x")
    storage.put(f"models/{new_id('mdl')}/a", source)
    away: Any = Database(f"sqlite:///{tmp_path}/no/such/folder.db")
    assert sweep(away, storage, grace_seconds=-60) == []
    assert len(list(storage.list("models"))) == 1


def test_ids_tell_their_time() -> None:
    assert abs(made_at(new_id("mdl")) - time.time()) < 60
