import base64
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.jobs import new_job, submit
from service.tables import Job, Model
from tests.databases import on_databases
from tests.uploads import Files, bert_files, form, tar, zipped

MODELS = "/v1/models"


def post(client: TestClient, body: bytes, kind: str = "application/x-tar", **headers: str) -> Any:
    return client.post(MODELS, params={"name": "tiny"}, content=body, headers={"Content-Type": kind, **headers})


@pytest.fixture
def model(client: TestClient) -> dict[str, Any]:
    answer = post(client, tar(bert_files()))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def stored(settings: Settings) -> list[Path]:
    """Every file that the service keeps, finished or not; folders may go while they are read."""
    folders = (settings.data_dir / "storage", settings.scratch)
    walks = (step for folder in folders for step in os.walk(folder))
    return [Path(folder, name) for folder, _, names in walks for name in names]


def test_the_answer_describes_the_model(client: TestClient) -> None:
    answer = post(client, tar(bert_files()))
    model = answer.json()
    assert answer.headers["location"] == f"{MODELS}/{model['id']}"
    assert model["object"] == "model"
    assert (model["name"], model["state"], model["family"]) == ("tiny", "ready", "bert")
    assert (model["architecture"], model["task"]) == ("BertForSequenceClassification", "text-classification")
    assert model["dtype"] == "float32"
    assert model["structure"] == {
        "layers": 2,
        "hidden_size": 8,
        "attention_heads": [2, 2],
        "ffn_width": [16, 16],
        "vocabulary": 20,
    }
    assert model["parameters"] == 20 * 8 + 32 * 8 + 2 * 8 + 16 + 2 * (4 * 72 + 16 + 144 + 136 + 16) + 72 + 18
    assert model["size"] == sum(file["size"] for file in model["files"])
    assert [file["path"] for file in model["files"]] == ["config.json", "model.safetensors", "vocab.txt"]
    assert "taylor" in model["supported"]["criteria"]
    assert "layers" in model["supported"]["structures"]
    assert "onnx" in model["supported"]["exports"]
    assert model["parent_model_id"] is model["job_id"] is None
    assert client.get(answer.headers["location"]).json() == model


def test_what_later_checks_need_is_stored(client: TestClient, database: Database) -> None:
    with_head, bare = bert_files(), bert_files({"architectures": ["BertModel"]}, head=False)
    del bare["vocab.txt"]
    ids = [post(client, tar(files)).json()["id"] for files in (with_head, bare)]
    with database.session_scope(read_only=True) as session:
        facts = [session.get_one(Model, id_).facts for id_ in ids]
    same = {"max_length": 32, "multi_label": False, "uniform": True}
    assert facts == [
        {"labels": ["no", "yes"], "has_head": True, "has_tokenizer": True, **same},
        {"labels": None, "has_head": False, "has_tokenizer": False, **same},
    ]


def test_an_unknown_family_is_kept_for_what_can_be_done_without_building_it(client: TestClient) -> None:
    config = {
        "model_type": "my-bert",
        "architectures": ["MyBertForEverything"],
        "num_hidden_layers": 3,
        "vocab_size": "many",
        "text_config": {"width": 8, "_attn_implementation": "evil/kernel", "trust_remote_code": True},
        "base_model_name_or_path": "/etc",
    }
    files = bert_files() | {"config.json": json.dumps(config).encode()}
    model = post(client, tar(files)).json()
    assert (model["state"], model["family"], model["architecture"]) == ("ready", "my-bert", "MyBertForEverything")
    assert model["structure"] == {
        "layers": 3,
        "hidden_size": None,
        "attention_heads": [],
        "ffn_width": [],
        "vocabulary": None,
    }
    assert model["supported"]["structures"] == ["weights"]
    assert (model["supported"]["criteria"], model["supported"]["exports"]) == (["magnitude"], ["huggingface"])
    kept = client.get(f"{MODELS}/{model['id']}/files/config.json").json()
    assert kept == {**{key: config[key] for key in list(config)[:4]}, "text_config": {"width": 8}}


def _in_folder(files: Files) -> Files:
    return {f"my-model/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "tar in a folder", "zip in a folder", "tar with ./"])
def test_every_kind_of_archive_gives_the_same_files(client: TestClient, kind: str) -> None:
    files = bert_files()
    bodies = {
        "tar": tar(files),
        "tar.gz": tar(files, "w:gz"),
        "zip": zipped(files),
        "tar in a folder": tar(_in_folder(files)),
        "zip in a folder": zipped(_in_folder(files)),
        "tar with ./": tar({f"./{name}": content for name, content in files.items()}),
    }
    answer = post(client, bodies[kind], "application/octet-stream")
    assert answer.status_code == 201, answer.text
    weights = next(file for file in answer.json()["files"] if file["path"] == "model.safetensors")
    assert weights["sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_a_form_may_name_the_model_after_the_file(client: TestClient) -> None:
    body, kind = form({"file": tar(bert_files()), "name": b"from a form", "metadata": b'{"team":"search"}'})
    answer = client.post(MODELS, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["metadata"]) == ("from a form", {"team": "search"})


def test_inert_files_are_dropped_and_pooling_stays(client: TestClient) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    files = bert_files() | {
        "README.md": b"# model",
        ".gitattributes": b"*",
        "onnx/model.onnx": b"onnx",
        "openvino/openvino_model.bin": b"plain weights",
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b"{}",
    }
    paths = [file["path"] for file in post(client, tar(files)).json()["files"]]
    assert paths == ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "vocab.txt"]


def test_shards_get_an_index_of_our_own(client: TestClient) -> None:
    from tests.uploads import bert_shapes, safetensors

    shapes = bert_shapes()
    names = list(shapes)
    shards = {f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    given = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    files = {name: content for name, content in bert_files().items() if name != "model.safetensors"}
    files |= {shard: safetensors({name: shapes[name] for name in held}) for shard, held in shards.items()}
    without = post(client, tar(files)).json()
    index = "model.safetensors.index.json"
    with_index = post(client, tar({**files, index: json.dumps(given).encode()})).json()
    assert with_index["files"] == without["files"]
    own = client.get(f"{MODELS}/{without['id']}/files/{index}").json()
    assert own["weight_map"] == given["weight_map"]


def test_the_archive_is_a_tar_of_the_files(client: TestClient, model: dict[str, Any]) -> None:
    answer = client.get(f"{MODELS}/{model['id']}/archive")
    digest = hashlib.sha256(answer.content).digest()
    assert answer.headers["etag"] == f'"{digest.hex()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        sizes = {member.name: member.size for member in archive.getmembers()}
    assert sizes == {file["path"]: file["size"] for file in model["files"]}
    part = client.get(f"{MODELS}/{model['id']}/archive", headers={"Range": "bytes=700-1499"})
    assert (part.status_code, part.content) == (206, answer.content[700:1500])


def test_a_file_by_its_path(client: TestClient, model: dict[str, Any]) -> None:
    for file in model["files"]:
        url = f"{MODELS}/{model['id']}/files/{file['path']}"
        answer = client.get(url)
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert client.head(url).headers["content-length"] == str(file["size"])
        assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["../../secateur.db", "%2e%2e%2f%2e%2e%2fsecateur.db", "/etc/passwd", "nothing"])
def test_no_path_leads_out_of_the_model(client: TestClient, model: dict[str, Any], path: str) -> None:
    answer = client.get(f"{MODELS}/{model['id']}/files/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_wrong_digest_keeps_nothing(client: TestClient, settings: Settings) -> None:
    body = tar(bert_files())
    right = base64.b64encode(hashlib.sha256(body).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    refused = post(client, body, **{"Repr-Digest": f"sha-256=:{wrong}:"})
    assert (refused.status_code, refused.json()["code"]) == (422, "DIGEST_MISMATCH")
    assert stored(settings) == []
    malformed = post(client, body, **{"Repr-Digest": "sha-256=:abc:"})
    assert (malformed.status_code, malformed.json()["code"]) == (400, "DIGEST_MALFORMED")
    assert post(client, body, **{"Repr-Digest": f"sha-512=:eA==:, sha-256=:{right}:"}).status_code == 201


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("application/json", 422, "INVALID_BODY"),
        ("text/plain", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("multipart/form-data", 400, "MULTIPART_MALFORMED"),
        ("application/zip", 400, "ARCHIVE_UNKNOWN"),
    ],
)
def test_other_bodies_are_refused(client: TestClient, kind: str, status: int, code: str) -> None:
    answer = post(client, b"{}", kind)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_an_upload_can_be_repeated_under_its_key(client: TestClient, settings: Settings) -> None:
    body = tar(bert_files())
    first = post(client, body, **{"Idempotency-Key": "one"})
    kept = stored(settings)
    second = post(client, body, **{"Idempotency-Key": "one"})
    assert (second.status_code, second.content) == (201, first.content)
    assert second.headers["location"] == first.headers["location"]
    assert stored(settings) == kept
    other = post(client, tar(bert_files({"vocab_size": 21})), **{"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert stored(settings) == kept


def test_a_repeated_form_may_draw_another_boundary(client: TestClient) -> None:
    answers = []
    for boundary in ("first", "second"):
        body, kind = form({"file": tar(bert_files()), "name": b"x"}, boundary)
        answers.append(client.post(MODELS, content=body, headers={"Content-Type": kind, "Idempotency-Key": "form"}))
    assert answers[0].json() == answers[1].json()


def test_lists_are_paged_newest_first(client: TestClient) -> None:
    ids = [post(client, tar(bert_files())).json()["id"] for _ in range(3)]
    first = client.get(MODELS, params={"limit": 2}).json()
    assert [model["id"] for model in first["data"]] == [ids[2], ids[1]]
    last = client.get(MODELS, params={"limit": 1000, "cursor": first["next_cursor"]}).json()
    assert ([model["id"] for model in last["data"]], last["next_cursor"]) == ([ids[0]], None)


def test_delete_takes_row_and_bytes(client: TestClient, model: dict[str, Any], settings: Settings) -> None:
    url = f"{MODELS}/{model['id']}"
    assert client.delete(url).status_code == 204
    assert stored(settings) == []
    for gone in (client.get(url), client.delete(url), client.get(f"{url}/archive")):
        assert (gone.status_code, gone.json()["code"]) == (404, "NOT_FOUND")
    assert client.get(MODELS).json()["data"] == []


def _job(model_id: str) -> Job:
    given: dict[str, Any] = {"name": "j", "metadata": {}, "model_id": model_id, "dataset_id": None, "priority": 0}
    return new_job("default", given, given)


@on_databases
def test_a_model_that_a_job_needs_cannot_be_deleted(
    client: TestClient, model: dict[str, Any], database: Database
) -> None:
    with database.session_scope() as session:
        job_id = submit(session, _job(model["id"])).id
    refused = client.delete(f"{MODELS}/{model['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "MODEL_IN_USE")
    with database.session_scope() as session:
        session.get_one(Job, job_id).status = "cancelled"
    assert client.delete(f"{MODELS}/{model['id']}").status_code == 204


def test_a_jobs_model_leaves_its_artifacts(
    client: TestClient, model: dict[str, Any], database: Database, settings: Settings
) -> None:
    with database.session_scope() as session:
        row = session.get_one(Model, model["id"])
        row.job_id, row.parent_model_id = "job_1", "mdl_1"
    kept = stored(settings)
    assert client.delete(f"{MODELS}/{model['id']}").status_code == 204
    assert stored(settings) == kept


def test_another_tenants_model_is_unknown(client: TestClient, model: dict[str, Any], database: Database) -> None:
    with database.session_scope() as session:
        stranger = issue_key(session, tenant="other", name="k", scopes=["admin"])[1]
    headers = {"Authorization": f"Bearer {stranger}", "X-Request-Id": "same"}
    unknown = client.get(f"{MODELS}/mdl_01KB0000000000000000000000", headers=headers)
    url = f"{MODELS}/{model['id']}"
    for answer in (client.get(url, headers=headers), client.delete(url, headers=headers)):
        assert (answer.status_code, answer.json()) == (404, unknown.json())
    for path in ("archive", "files/config.json"):
        assert client.get(f"{url}/{path}", headers=headers).status_code == 404
    assert client.get(MODELS, headers=headers).json()["data"] == []
    assert client.get(url).status_code == 200


def test_a_read_key_cannot_upload(client: TestClient, database: Database, settings: Settings) -> None:
    with database.session_scope() as session:
        reader = issue_key(session, tenant="default", name="k", scopes=["read"])[1]
    answer = post(client, tar(bert_files()), Authorization=f"Bearer {reader}")
    assert answer.status_code == 403
    assert stored(settings) == []
