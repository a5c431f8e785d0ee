"""Uploads that nobody finishes go, with their bytes and their model; those that live stay."""

from starlette.testclient import TestClient

from service.config import Settings
from service.db import Database
from service.intake import partial, uploads
from service.storage import open_storage
from service.tables import Model, utc_now
from tests.databases import on_databases
from tests.service.routes.test_manifests import begin, send
from tests.service.routes.test_models import MODELS, post
from tests.uploads import bert_files, tar


def _age(database: Database, model_id: str, positions: set[int]) -> None:
    with database.session_scope() as session:
        for upload in uploads.uploads_of(session, model_id):
            if upload.position in positions:
                upload.expires_at = utc_now()


@on_databases
def test_a_model_expires_with_the_last_of_its_files(client: TestClient, settings: Settings, database: Database) -> None:
    files = bert_files()
    model, other = begin(client, files), begin(client, files, name="other")
    send(client, model["uploads"][1], files["model.safetensors"][:500])
    storage = open_storage(settings.storage)
    _age(database, model["id"], {0, 2})
    assert uploads.sweep(database, storage, settings.scratch) == []
    _age(database, model["id"], {0, 1, 2})
    assert uploads.sweep(database, storage, settings.scratch) == [model["id"]]
    assert partial.model_ids(settings.scratch) == [other["id"]]
    assert client.get(f"{MODELS}/{model['id']}").status_code == 404
    assert client.head(model["uploads"][1]["upload_url"]).status_code == 404
    with database.session_scope(read_only=True) as session:
        assert session.get(Model, model["id"]) is None
        assert session.get(Model, other["id"]) is not None


def test_an_upload_that_is_written_to_does_not_expire(
    client: TestClient, settings: Settings, database: Database
) -> None:
    model = begin(client, bert_files())
    _age(database, model["id"], {0, 1, 2})
    storage = open_storage(settings.storage)
    upload_id = model["uploads"][0]["upload_url"].rpartition("/")[2]
    with partial.writing(settings.scratch, model["id"], upload_id):
        assert uploads.sweep(database, storage, settings.scratch) == []
    assert send(client, model["uploads"][0], b"{").status_code == 204
    assert uploads.sweep(database, storage, settings.scratch) == []


def test_folders_of_killed_processes_go(client: TestClient, settings: Settings, database: Database) -> None:
    model = begin(client, bert_files())
    done = post(client, tar(bert_files())).json()
    old = "mdl_01KB0000000000000000000000"
    for left in (done["id"], old, "mdl_7Z000000000000000000000000", "of-somebody-else"):
        partial.folder_of(settings.scratch, left).mkdir()
    assert sorted(uploads.sweep(database, open_storage(settings.storage), settings.scratch)) == sorted(
        [old, done["id"]]
    )
    assert model["id"] in partial.model_ids(settings.scratch)
    assert partial.folder_of(settings.scratch, "of-somebody-else").is_dir()
