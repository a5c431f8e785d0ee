"""Models that are sent file by file: manifests, what is present already, completion, refusals."""

import hashlib
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.intake import partial, uploads
from service.storage import open_storage
from service.tables import Upload
from tests.databases import on_databases
from tests.service.routes.test_models import MODELS, post, stored
from tests.uploads import CONFIG, Files, bert_files, bert_shapes, safetensors, tar, with_header

CHUNK = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}


def manifest(files: Files, **fields: Any) -> dict[str, Any]:
    """The body that announces these files."""
    listed = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]
    return {"name": "tiny", "files": listed} | fields


def begin(client: TestClient, files: Files, **fields: Any) -> dict[str, Any]:
    """A model that waits for these files."""
    answer = client.post(MODELS, json=manifest(files, **fields))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def send(client: TestClient, upload: dict[str, Any], content: bytes, offset: int = 0, **headers: Any) -> Any:
    """One chunk."""
    return client.patch(
        upload["upload_url"], content=content, headers={**CHUNK, "Upload-Offset": str(offset), **headers}
    )


def send_all(client: TestClient, model: dict[str, Any], files: Files) -> None:
    """Every byte that is missing."""
    for upload in model["uploads"]:
        content = files[upload["path"]]
        if upload["state"] != "present":
            answer = send(client, upload, content[upload["offset"] :], upload["offset"])
            assert answer.status_code == 204, answer.text


def complete(client: TestClient, model: dict[str, Any]) -> Any:
    """Ask for the model to be checked."""
    return client.post(f"{MODELS}/{model['id']}/complete")


@on_databases
def test_a_model_file_by_file_is_the_same_as_its_archive(client: TestClient, settings: Settings) -> None:
    files = bert_files()
    answer = client.post(MODELS, json=manifest(files, metadata={"team": "search"}))
    model = answer.json()
    assert (answer.status_code, model["state"]) == (201, "uploading")
    assert answer.headers["location"] == f"{MODELS}/{model['id']}"
    assert model["family"] is model["parameters"] is model["dtype"] is None
    assert model["size"] == sum(len(content) for content in files.values())
    assert [(upload["path"], upload["state"], upload["offset"]) for upload in model["uploads"]] == [
        (path, "needed", 0) for path in files
    ]
    assert client.get(f"{MODELS}/{model['id']}").json() == model
    send_all(client, model, files)
    done = complete(client, model)
    assert done.status_code == 200, done.text
    by_archive = post(client, tar(files)).json()
    own = {"id", "created_at", "metadata"}
    assert {name: value for name, value in done.json().items() if name not in own} == {
        name: value for name, value in by_archive.items() if name not in own
    }
    assert done.json()["metadata"] == {"team": "search"}
    assert client.get(f"{MODELS}/{model['id']}").json() == done.json() == complete(client, model).json()
    archives = [client.get(f"{MODELS}/{one['id']}/archive").content for one in (model, by_archive)]
    assert archives[0] == archives[1]
    assert [path for path in settings.scratch.rglob("*") if path.is_file()] == []
    for upload in model["uploads"]:
        assert client.head(upload["upload_url"]).status_code == 404


def test_files_that_an_archive_would_drop_are_sent_and_dropped(client: TestClient) -> None:
    files = {f"my-model/{path}": content for path, content in bert_files().items()} | {"my-model/README.md": b"# model"}
    model = begin(client, files)
    send_all(client, model, files)
    kept = complete(client, model).json()
    assert [file["path"] for file in kept["files"]] == ["config.json", "model.safetensors", "vocab.txt"]


@on_databases
def test_what_the_tenant_stores_already_is_not_sent_again(
    client: TestClient, database: Database, settings: Settings
) -> None:
    first = post(client, tar(bert_files())).json()
    files = bert_files({"id2label": {"0": "bad", "1": "good"}}) | {"tokenizer_config.json": b"{}"}
    model = begin(client, files)
    states = {upload["path"]: upload["state"] for upload in model["uploads"]}
    assert states == {
        "config.json": "needed",
        "model.safetensors": "present",
        "vocab.txt": "present",
        "tokenizer_config.json": "needed",
    }
    assert client.delete(f"{MODELS}/{first['id']}").status_code == 204  # what was promised stays
    send_all(client, model, files)
    done = complete(client, model)
    assert done.status_code == 200, done.text
    for name in ("model.safetensors", "vocab.txt"):
        assert client.get(f"{MODELS}/{model['id']}/files/{name}").content == files[name]
    with database.session_scope() as session:
        stranger = issue_key(session, tenant="other", name="k", scopes=["admin"])[1]
    theirs = client.post(MODELS, json=manifest(files), headers={"Authorization": f"Bearer {stranger}"}).json()
    assert {upload["state"] for upload in theirs["uploads"]} == {"needed"}


def test_a_second_model_of_the_same_files_needs_no_byte(client: TestClient, settings: Settings) -> None:
    files = bert_files()
    originals = [begin(client, files)]
    send_all(client, originals[0], files)
    assert complete(client, originals[0]).status_code == 200
    again = begin(client, files, name="again")
    states = {upload["path"]: upload["state"] for upload in again["uploads"]}
    assert states["model.safetensors"] == states["vocab.txt"] == "present"
    send_all(client, again, files)
    assert complete(client, again).status_code == 200
    assert client.delete(f"{MODELS}/{originals[0]['id']}").status_code == 204
    for name in ("model.safetensors", "vocab.txt"):
        assert client.get(f"{MODELS}/{again['id']}/files/{name}").content == files[name]


@on_databases
def test_the_same_manifest_goes_on_with_its_unfinished_model(client: TestClient) -> None:
    files = bert_files()
    model = begin(client, files)
    assert send(client, model["uploads"][1], files["model.safetensors"][:1000]).status_code == 204
    again = begin(client, files)
    assert again["id"] == model["id"]
    assert [(upload["state"], upload["offset"]) for upload in again["uploads"]] == [
        ("needed", 0), ("partial", 1000), ("needed", 0),
    ]  # fmt: skip
    assert begin(client, files, name="other")["id"] != model["id"]
    send_all(client, again, files)
    assert complete(client, again).json()["state"] == "ready"
    assert begin(client, files)["id"] != model["id"]


def test_a_manifest_can_be_repeated_under_its_key(client: TestClient, settings: Settings) -> None:
    body, headers = manifest(bert_files()), {"Idempotency-Key": "once"}
    first = client.post(MODELS, json=body, headers=headers)
    send(client, first.json()["uploads"][0], b"{")
    second = client.post(MODELS, json=body, headers=headers)
    assert (second.status_code, second.content) == (201, first.content)
    other = client.post(MODELS, json=body | {"name": "x"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert partial.model_ids(settings.scratch) == [first.json()["id"]]


SOUND = {"path": "config.json", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("files", "code", "pointer"),
    [
        ([{**SOUND, "path": "../up"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([SOUND, {**SOUND, "path": "a/../../b"}], "ARCHIVE_NAME_REFUSED", "/files/1/path"),
        ([{**SOUND, "path": "/etc/passwd"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "C:\\x"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "a\\..\\b"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "\u202egnp"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "folder/"}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "."}], "ARCHIVE_NAME_REFUSED", "/files/0/path"),
        ([SOUND, SOUND], "ARCHIVE_DUPLICATE", "/files/1/path"),
        ([SOUND, {**SOUND, "path": "./Config.json"}], "ARCHIVE_DUPLICATE", "/files/1/path"),
        ([SOUND, {**SOUND, "path": "config.json/x"}], "ARCHIVE_DUPLICATE", "/files/1/path"),
        ([{**SOUND, "path": "pytorch_model.bin"}], "PICKLE_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "modeling.py"}], "REMOTE_CODE_REFUSED", "/files/0/path"),
        ([{**SOUND, "path": "adapter_config.json"}], "ADAPTER_REFUSED", "/files/0/path"),
        ([{**SOUND, "size": -1}], "INVALID_BODY", "/files/0/size"),
        ([{**SOUND, "size": 2**70}], "INVALID_BODY", "/files/0/size"),
        ([{**SOUND, "size": "1"}], "INVALID_BODY", "/files/0/size"),
        ([{**SOUND, "sha256": "A" * 64}], "INVALID_BODY", "/files/0/sha256"),
        ([{**SOUND, "sha256": "0" * 63}], "INVALID_BODY", "/files/0/sha256"),
        ([{**SOUND, "mode": 7}], "INVALID_BODY", "/files/0/mode"),
        ([], "INVALID_BODY", "/files"),
    ],
)
def test_a_bad_manifest_is_refused_before_any_byte(
    client: TestClient, settings: Settings, files: list[dict[str, Any]], code: str, pointer: str
) -> None:
    answer = client.post(MODELS, json={"files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert client.get(MODELS).json()["data"] == []
    assert (stored(settings), partial.model_ids(settings.scratch)) == ([], [])


def test_too_many_files_are_refused(client: TestClient) -> None:
    files = [{**SOUND, "path": str(number)} for number in range(10_001)]
    body = json.dumps({"files": files}, separators=(",", ":")).encode()
    answer = client.post(MODELS, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "ARCHIVE_TOO_MANY_ENTRIES")
    too_long = client.post(MODELS, content=body + b" " * 100_000, headers={"Content-Type": "application/json"})
    assert (too_long.status_code, too_long.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_model_that_the_disk_cannot_take_is_refused(client: TestClient, settings: Settings) -> None:
    answer = client.post(MODELS, json={"files": [{**SOUND, "size": 1 << 59}]})
    assert (answer.status_code, answer.json()["code"]) == (507, "NO_SPACE")
    app: Any = client.app
    app.state.settings = settings.model_copy(update={"max_upload_bytes": 1000})
    answer = client.post(MODELS, json={"files": [{**SOUND, "size": 1001}]})
    assert (answer.status_code, answer.json()["code"]) == (413, "MODEL_TOO_LARGE")


def test_no_model_is_completed_before_its_last_byte(client: TestClient) -> None:
    files = bert_files()
    model = begin(client, files)
    send(client, model["uploads"][0], files["config.json"])
    send(client, model["uploads"][1], files["model.safetensors"][:-1])
    answer = complete(client, model)
    assert (answer.status_code, answer.json()["code"]) == (409, "UPLOAD_INCOMPLETE")
    shown = client.get(f"{MODELS}/{model['id']}").json()
    assert (shown["state"], [upload["state"] for upload in shown["uploads"]]) == (
        "uploading",
        ["present", "partial", "needed"],
    )
    for path in ("archive", "files/config.json"):
        assert client.get(f"{MODELS}/{model['id']}/{path}").status_code in (404, 409)
    refused = client.post(f"{MODELS}/{model['id']}/inspections", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "MODEL_NOT_READY")


def _refused() -> dict[str, Files]:
    """Models that the archive's door refuses, by the cause."""
    sound = bert_files()
    shapes = bert_shapes()
    missing = {name: shape for name, shape in shapes.items() if "layer.1" not in name}
    not_finite = bytearray(sound["model.safetensors"])
    not_finite[-4:] = b"\x00\x00\xc0\x7f"
    return {
        "CONFIG_MISSING": {"model.safetensors": sound["model.safetensors"]},
        "WEIGHTS_MISSING": {"config.json": sound["config.json"]},
        "SAFETENSORS_REFUSED": sound | {"model.safetensors": with_header(b'{"a": 1}')},
        "WEIGHTS_NOT_FINITE": sound | {"model.safetensors": bytes(not_finite)},
        "WEIGHTS_MISMATCH": sound | {"model.safetensors": safetensors(missing)},
        "REMOTE_CODE_REFUSED": sound
        | {"config.json": json.dumps({**CONFIG, "auto_map": {"AutoModel": "m.M"}}).encode()},
        "PICKLE_REFUSED": sound | {"README.md": b"\x80\x04\x95\x00"},
        "TOKENIZER_REFUSED": sound | {"vocab.txt": b"\xff\xfe"},
        "CONFIG_INVALID": sound | {"config.json": b"not JSON"},
    }


@pytest.mark.parametrize("cause", _refused())
def test_what_an_archive_may_not_hold_makes_a_model_invalid(client: TestClient, settings: Settings, cause: str) -> None:
    files = _refused()[cause]
    by_archive = post(client, tar(files))
    model = begin(client, files)
    send_all(client, model, files)
    refused = complete(client, model)
    assert (refused.status_code, refused.json()["code"]) == (by_archive.status_code, by_archive.json()["code"])
    assert refused.json()["detail"] == by_archive.json()["detail"]
    shown = client.get(f"{MODELS}/{model['id']}").json()
    assert (shown["state"], shown["size"]) == ("invalid", 0)
    assert shown["problem"] == {"code": refused.json()["code"], "detail": refused.json()["detail"]}
    assert (stored(settings), partial.model_ids(settings.scratch)) == ([], [])
    assert complete(client, model).json()["code"] == refused.json()["code"]
    assert client.delete(f"{MODELS}/{model['id']}").status_code == 204


def test_a_digest_that_lies_makes_a_model_invalid(client: TestClient, settings: Settings) -> None:
    files = bert_files()
    model = begin(client, files)
    send_all(client, model, files | {"model.safetensors": files["model.safetensors"][:-1] + b"x"})
    refused = complete(client, model)
    assert (refused.status_code, refused.json()["code"]) == (422, "DIGEST_MISMATCH")
    assert client.get(f"{MODELS}/{model['id']}").json()["state"] == "invalid"
    assert stored(settings) == []


def test_a_digest_of_an_empty_file_that_lies_makes_a_model_invalid(client: TestClient) -> None:
    files = bert_files() | {"empty.txt": b""}
    body = manifest(files)
    next(file for file in body["files"] if not file["size"])["sha256"] = "0" * 64
    model = client.post(MODELS, json=body).json()
    send_all(client, model, files)
    refused = complete(client, model)
    assert (refused.status_code, refused.json()["code"]) == (422, "DIGEST_MISMATCH")


def test_an_upload_that_was_killed_while_it_was_completed_is_completed_again(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = bert_files()
    model = begin(client, files)
    send_all(client, model, files)

    def dies(*_: Any) -> bool:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(uploads, "finish", dies)
        assert complete(client, model).status_code == 500
    assert open_storage(settings.storage).size(f"models/{model['id']}/model.safetensors")
    shown = client.get(f"{MODELS}/{model['id']}").json()
    assert (shown["state"], {upload["state"] for upload in shown["uploads"]}) == ("uploading", {"present"})
    assert complete(client, model).json()["state"] == "ready"
    weights = client.get(f"{MODELS}/{model['id']}/files/model.safetensors")
    assert weights.content == files["model.safetensors"]


def test_deleting_frees_what_was_sent(client: TestClient, settings: Settings, database: Database) -> None:
    files = bert_files()
    model = begin(client, files)
    send_all(client, model, files)
    assert client.delete(f"{MODELS}/{model['id']}").status_code == 204
    assert stored(settings) == []
    assert complete(client, model).status_code == 404
    assert send(client, model["uploads"][0], b"x").status_code == 404
    with database.session_scope(read_only=True) as session:
        assert session.query(Upload).count() == 0


# Tenants


def test_another_tenants_upload_is_unknown(client: TestClient, database: Database, settings: Settings) -> None:
    files = bert_files()
    model = begin(client, files)
    with database.session_scope() as session:
        stranger = issue_key(session, tenant="other", name="k", scopes=["admin"])[1]
    as_stranger = {**CHUNK, "Authorization": f"Bearer {stranger}", "Upload-Offset": "0"}
    url = model["uploads"][0]["upload_url"]
    for method in ("HEAD", "PATCH", "DELETE", "OPTIONS"):
        content = b"x" if method == "PATCH" else None
        assert client.request(method, url, headers=as_stranger, content=content).status_code == 404, method
    for path in ("complete", "uploads"):
        assert client.post(f"{MODELS}/{model['id']}/{path}", headers=as_stranger).status_code == 404
    assert client.head(url).headers["upload-offset"] == "0"
    theirs = client.post(MODELS, json=manifest(files), headers={"Authorization": f"Bearer {stranger}"}).json()
    assert theirs["id"] != model["id"]


def test_a_read_key_may_look_and_not_write(client: TestClient, database: Database) -> None:
    model = begin(client, bert_files())
    with database.session_scope() as session:
        reader = issue_key(session, tenant="default", name="k", scopes=["read"])[1]
    headers = {"Authorization": f"Bearer {reader}"}
    upload = model["uploads"][0]
    assert client.head(upload["upload_url"], headers=headers).status_code == 200
    assert send(client, upload, b"x", 0, **headers).status_code == 403
    assert client.delete(upload["upload_url"], headers=headers).status_code == 403
    assert client.post(f"{MODELS}/{model['id']}/complete", headers=headers).status_code == 403
    assert client.post(MODELS, json=manifest(bert_files()), headers=headers).status_code == 403
