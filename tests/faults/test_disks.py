"""Uploads whose process dies, and uploads and engines whose disk fails at any call: all is there whole, or nothing."""

import errno
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.app import create_app
from service.config import Settings
from service.db import Database
from service.specs import JobSpec
from service.tables import Dataset, Model
from tests.faults import stores
from tests.faults.calls import Call, at_each, counted, fails, killed_at, refused, until_through
from tests.uploads import bert_files, tar
from workers.engine import __main__ as engine
from workers.engine.interruption import Interruption
from workers.engine.reporter import Reporter

FILES = bert_files()
ROWS = {"train": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', "test": b'{"text": "c", "label": 0}\n'}
KINDS = ("archive", "dataset", "manifest", "chunk", "completion")
TOLD = {errno.ENOSPC: (507, "NO_SPACE"), errno.EIO: (500, "STORAGE_ERROR")}
CHUNK = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}


@contextmanager
def api(settings: Settings, api_key: str) -> Iterator[TestClient]:
    """The application."""
    headers = {"Authorization": f"Bearer {api_key}"}
    app = create_app(settings)
    with TestClient(app, "http://127.0.0.1:8400", raise_server_exceptions=False, headers=headers) as client:
        yield client


def settle(patch: pytest.MonkeyPatch) -> None:
    """Let only what is asked for be counted: no thread in the background, no key that is looked up again."""
    patch.setattr("service.callers.BELIEVED_SECONDS", 3600.0)
    for name in ("service.reconciler.Reconciler", "service.webhooks.sender.Sender", "service.scrub.Scrubber"):
        for step in ("start", "stop"):
            patch.setattr(f"{name}.{step}", lambda self: None)


@pytest.fixture(autouse=True)
def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)


def begin(client: TestClient) -> Any:
    """Announce the model's files."""
    files = [{"path": path, "size": len(data), "sha256": sha256(data).hexdigest()} for path, data in FILES.items()]
    return client.post("/v1/models", json={"name": "tiny", "files": files})


def uploads_of(client: TestClient) -> list[dict[str, Any]]:
    """How much of each file is here, by the one model that is there."""
    (model,) = client.get("/v1/models").json()["data"]
    uploads: list[dict[str, Any]] = client.get(f"/v1/models/{model['id']}").json()["uploads"]
    return uploads


def send(client: TestClient) -> Any:
    """Send what is missing of the weights."""
    return next(_send(client, upload) for upload in uploads_of(client) if upload["path"] == "model.safetensors")


def _send(client: TestClient, upload: dict[str, Any]) -> Any:
    url, data = upload["upload_url"], FILES[upload["path"]]
    offset = int(client.head(url, headers=CHUNK).headers["Upload-Offset"])
    return client.patch(url, content=data[offset:], headers=CHUNK | {"Upload-Offset": str(offset)})


def complete(client: TestClient) -> Any:
    """Ask for the model to be checked and stored."""
    (model,) = client.get("/v1/models").json()["data"]
    return client.post(f"/v1/models/{model['id']}/complete")


ASK: dict[str, Callable[[TestClient], Any]] = {
    "archive": lambda client: client.post(
        "/v1/models?name=tiny", content=tar(FILES), headers={"Content-Type": "application/x-tar"}
    ),
    "dataset": lambda client: client.post(
        "/v1/datasets?name=d&task=text-classification",
        files={split: (f"{split}.jsonl", rows) for split, rows in ROWS.items()},
    ),
    "manifest": begin,
    "chunk": send,
    "completion": complete,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What is asked for."""
    return str(request.param)


@pytest.fixture
def base(settings: Settings, api_key: str, kind: str) -> Settings:
    """A service that is ready for it."""
    with api(settings, api_key) as client:
        if kind in ("chunk", "completion"):
            uploads = begin(client).json()["uploads"]
            if kind == "completion":
                assert [_send(client, upload).status_code for upload in uploads] == [204] * len(FILES)
    return settings


def asking(settings: Settings, api_key: str, kind: str) -> Callable[[], object]:
    """An API process that is about to be asked."""
    client = api(settings, api_key).__enter__()
    return lambda: ASK[kind](client)


def made(database: Database) -> int:
    """How many models and data sets are there for anybody to use."""
    with database.session_scope(read_only=True) as session:
        models = select(Model.id).where(Model.state == "ready")
        return len(list(session.scalars(models))) + len(list(session.scalars(select(Dataset.id))))


def assert_comes_through(settings: Settings, api_key: str, kind: str) -> None:
    """Asked again, it is there, whole; nothing is left of what failed."""
    with api(settings, api_key) as client, stores.opened(settings) as database:
        stores.assert_whole(database, settings)
        answer = ASK[kind](client)
        if kind == "completion" and answer.status_code == 409:  # what a broken disk had kept was dropped
            assert answer.json()["code"] == "UPLOAD_INCOMPLETE"
            for upload in uploads_of(client):
                assert _send(client, upload).status_code == 204
            answer = complete(client)
        assert answer.status_code in (200, 201, 204), answer.text
        stores.assert_whole(database, settings)
        if kind in ("archive", "dataset", "completion"):
            assert made(database) in (1, 2)
        if kind in ("manifest", "chunk"):
            drop(client)
        stores.assert_swept(database, settings)


def drop(client: TestClient) -> None:
    """Give unfinished models up, so that nothing may be left."""
    for model in client.get("/v1/models").json()["data"]:
        assert client.delete(f"/v1/models/{model['id']}").status_code == 204


def kill(base: Settings, api_key: str, kind: str, folder: Path, number: int) -> tuple[bool, None]:
    """Whether the API was killed at a call."""
    settle(pytest.MonkeyPatch())
    with stores.copied(base, folder / f"killed-{number}") as settings:
        killed = killed_at(number, settings.data_dir, asking, settings, api_key, kind)
        assert_comes_through(settings, api_key, kind)
    return killed, None


def test_a_kill_at_any_call_of_an_upload_leaves_all_or_nothing(
    base: Settings, api_key: str, kind: str, tmp_path: Path
) -> None:
    killed = until_through(partial(kill, base, api_key, kind, tmp_path))
    assert len(killed) > (25 if kind in ("archive", "completion") else 6)


def fail(base: Settings, api_key: str, kind: str, folder: Path, code: int, call: Call) -> None:
    """Let the disk fail at a call."""
    settle(pytest.MonkeyPatch())
    with stores.copied(base, folder / f"{code}-{call.number}") as settings:
        with api(settings, api_key) as client, stores.opened(settings) as database:
            with counted(settings.data_dir, fails(call, code)):
                answer = ASK[kind](client)
            if answer.status_code < 400:
                assert call.name in ("unlink", "rmdir", "mkdir"), call  # a folder that is there need not be made
            else:
                assert (answer.status_code, answer.json()["code"]) == TOLD[code], call
                assert made(database) == 0
            if kind == "completion" and call.name == "fsync" and code == errno.EIO:
                # A second flush of the same file would hide what is lost.
                assert [upload["offset"] for upload in uploads_of(client)] == [0] * len(FILES)
            assert client.get("/v1/models").status_code == 200
        assert_comes_through(settings, api_key, kind)


@pytest.mark.parametrize("code", TOLD)
def test_a_disk_that_fails_at_any_call_of_an_upload_is_told(
    base: Settings, api_key: str, kind: str, tmp_path: Path, code: int
) -> None:
    with (
        stores.copied(base, tmp_path / "whole") as settings,
        api(settings, api_key) as client,
        counted(settings.data_dir) as calls,
    ):
        assert ASK[kind](client).status_code in (200, 201, 204)
    assert at_each(refused(calls.made, code), partial(fail, base, api_key, kind, tmp_path, code))


def engine_folder(folder: Path) -> Path:
    """The folder of a job that goes from file to file, before its engine begins."""
    model = folder / "in/model"
    model.mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    for name, data in FILES.items():
        (model / name).write_bytes(data)
    cut = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
    spec = JobSpec.model_validate(
        {
            "name": "streamed",
            "model_id": "mdl_" + "0" * 26,
            "task": "text-classification",
            "pruning": {"cuts": [cut]},
            "benchmark": None,
        }
    )
    known = {
        "family": "bert",
        "architecture": "BertForSequenceClassification",
        "task": "text-classification",
        "parameters": 1000,
        "dtype": "float32",
        "structure": {"layers": 2, "hidden_size": 8, "attention_heads": [], "ffn_width": [], "vocabulary": 20},
        "facts": {"uniform": True, "labels": ["no", "yes"], "max_length": 32, "has_head": True, "has_tokenizer": True},
    }
    order = {"configuration": spec.model_dump(mode="json"), "model": known, "max_threads": 1}
    (folder / "order.json").write_text(json.dumps(order))
    return folder


@pytest.mark.parametrize(("code", "name"), [(errno.ENOSPC, "NO_SPACE"), (errno.EIO, "STORAGE_ERROR")])
def test_a_disk_that_fails_at_any_call_of_an_engine_has_a_name(tmp_path: Path, code: int, name: str) -> None:
    whole = engine_folder(tmp_path / "whole")
    with counted(whole) as calls:
        engine._run(whole, Reporter(io.StringIO()), Interruption())
    assert (whole / "result.json").exists()
    places = refused(calls.made, code)
    assert len(places) > 20
    for call in places:
        folder = engine_folder(tmp_path / f"failed-{call.number}")
        with counted(folder, fails(call, code)):
            try:
                engine._run(folder, Reporter(io.StringIO()), Interruption())
            except Exception as error:
                failure = engine.classify(error)
                assert (failure.code, failure.retryable, failure.blame) == (name, True, "transient"), (call, error)
                assert not (folder / "result.json").exists()
            else:  # what cannot be sent from file to file is read and written
                assert call.name in ("unlink", "rmdir", "mkdir", "sendfile"), call
