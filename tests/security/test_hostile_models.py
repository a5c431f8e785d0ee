"""Every hostile model upload is refused over HTTP with its code; nothing is kept, run, or told."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.config import Settings
from tests.security.corpus import ARCHIVES, CONFIGS, INDEXES, NAMES, PICKLES, SAFETENSORS, Hostile
from tests.service.routes.test_models import MODELS, post, stored
from tests.uploads import bert_files, bert_shapes, form, safetensors, tar

EVERYTHING = [*PICKLES, *CONFIGS, *INDEXES, *NAMES, *ARCHIVES]


def _tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if "secateur.db" not in path.name}


def assert_refused(answer: Any, code: str) -> None:
    assert answer.status_code in (400, 413, 422), answer.text
    problem = answer.json()
    assert problem["code"] == code, problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.fixture(autouse=True)
def nothing_kept(shared_client: TestClient, shared_settings: Settings) -> Any:
    """Whatever a test uploads leaves no file anywhere, and the service goes on."""
    root = shared_settings.data_dir.parent
    for folder in (shared_settings.scratch / "uploads", shared_settings.data_dir / "storage" / "models"):
        folder.mkdir(parents=True, exist_ok=True)
    before = _tree(root)
    yield
    assert _tree(root) == before
    assert stored(shared_settings) == []
    assert shared_client.get(MODELS).json()["data"] == []
    assert shared_client.get("/healthz").status_code == 200


@pytest.mark.parametrize("hostile", EVERYTHING, ids=lambda hostile: hostile.name)
def test_refused(shared_client: TestClient, tmp_path: Path, hostile: Hostile) -> None:
    marker = tmp_path / "marker"
    assert_refused(post(shared_client, hostile.make(marker), "application/octet-stream"), hostile.code)
    assert not marker.exists()


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_headers(shared_client: TestClient, name: str) -> None:
    files = bert_files() | {"model.safetensors": SAFETENSORS[name]()}
    assert_refused(post(shared_client, tar(files)), "SAFETENSORS_REFUSED")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(shared_client: TestClient, value: float) -> None:
    weights = bytearray(safetensors(bert_shapes()))
    weights[-4:] = struct.pack("<f", value)
    assert_refused(post(shared_client, tar(bert_files() | {"model.safetensors": bytes(weights)})), "WEIGHTS_NOT_FINITE")


def test_the_same_tensor_in_two_shards(shared_client: TestClient) -> None:
    weights = bert_files()["model.safetensors"]
    assert_refused(post(shared_client, tar(bert_files() | {"model-2.safetensors": weights})), "SAFETENSORS_REFUSED")


def test_a_form_with_5000_fields(shared_client: TestClient) -> None:
    body, kind = form({f"f{number}": b"x" for number in range(5000)})
    answer = shared_client.post(MODELS, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("TOO_MANY_PARTS", "PART_UNKNOWN")


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"name": b"x" * 5_000_000}, "FIELD_TOO_LARGE"),
        ({"name": b"\xff"}, "MULTIPART_MALFORMED"),
        ({"name": b""}, "NAME_INVALID"),
        ({"name": b"a\0b"}, "NAME_INVALID"),
        ({"metadata": b"[]"}, "METADATA_INVALID"),
        ({"metadata": b'{"a": 1}'}, "METADATA_INVALID"),
        ({"metadata": b'{"a": "\\ud800"}'}, "METADATA_INVALID"),
        ({"other": b"x"}, "PART_UNKNOWN"),
        ({}, "FILE_MISSING"),
    ],
)
def test_hostile_fields(shared_client: TestClient, parts: dict[str, bytes], code: str) -> None:
    files = {} if code == "FILE_MISSING" else {"file": tar(bert_files())}
    body, kind = form(files | parts)
    answer = shared_client.post(MODELS, content=body, headers={"Content-Type": kind})
    assert_refused(answer, code)


@pytest.mark.parametrize("cut", [3, 50, 200, 5000])
def test_a_form_cut_off(shared_client: TestClient, cut: int) -> None:
    body, kind = form({"file": tar(bert_files())})
    assert_refused(
        shared_client.post(MODELS, content=body[:-cut], headers={"Content-Type": kind}), "MULTIPART_MALFORMED"
    )


def test_a_long_boundary(shared_client: TestClient) -> None:
    body, kind = form({"file": b""}, "b" * 5000)
    assert_refused(shared_client.post(MODELS, content=body, headers={"Content-Type": kind}), "MULTIPART_MALFORMED")


@pytest.mark.parametrize("name", ["a\0b", "\x1b[31m", "x" * 201])
def test_names_that_cannot_be_shown(shared_client: TestClient, name: str) -> None:
    headers = {"Content-Type": "application/x-tar"}
    answer = shared_client.post(MODELS, params={"name": name}, content=tar(bert_files()), headers=headers)
    assert answer.status_code in (400, 422)


def test_no_refusal_repeats_what_was_sent(shared_client: TestClient) -> None:
    canary = "canary-7f3a"
    configs: list[dict[str, Any]] = [
        {"model_type": f"../{canary}"},
        {"architectures": [canary]},
        {"hidden_act": canary},
        {"num_hidden_layers": canary},
        {"id2label": {canary: canary}},
    ]
    for changes in configs:
        config = {**json.loads(bert_files()["config.json"]), **changes}
        answer = post(shared_client, tar(bert_files() | {"config.json": json.dumps(config).encode()}))
        assert answer.status_code == 422
        assert canary not in answer.text


def test_a_chat_template_that_is_a_program_stays_text(shared_client: TestClient, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}{{{{ 'x' * 2000000000 }}}}"
    config = json.dumps({"tokenizer_class": "BertTokenizer", "chat_template": program}).encode()
    files = bert_files() | {"tokenizer_config.json": config, "chat_template.jinja": program.encode()}
    model = post(shared_client, tar(files)).json()
    kept = f"{MODELS}/{model['id']}/files"
    assert shared_client.get(f"{kept}/tokenizer_config.json").json()["chat_template"] == program
    assert shared_client.get(f"{kept}/chat_template.jinja").text == program
    assert not marker.exists()
    assert shared_client.delete(f"{MODELS}/{model['id']}").status_code == 204


def test_graphs_and_images_beside_the_weights_are_dropped(shared_client: TestClient) -> None:
    node = b"\x08\x07\x12\x04evil:\x10\n\x0e*\x03com.evil.op"
    dropped = {"onnx/model.onnx": node, "model.onnx": node, "model.onnx_data": bytes(100), "logo.png": b"\x89PNG\r\n"}
    model = post(shared_client, tar(bert_files() | dropped)).json()
    assert not dropped.keys() & {file["path"] for file in model["files"]}
    assert shared_client.delete(f"{MODELS}/{model['id']}").status_code == 204


def test_keys_that_a_library_would_obey_are_dropped(shared_client: TestClient) -> None:
    hostile = {
        "_attn_implementation_internal": "evil/kernel",
        "trust_remote_code": True,
        "_name_or_path": "/etc",
        "base_model_name_or_path": "/etc",
        "pruned_heads": {"0": [1]},
        "text_config": {"trust_remote_code": True},
    }
    tokenizer = {"tokenizer_class": "BertTokenizer", "vocab_file": "/etc/passwd", "name_or_path": "/etc"}
    files = bert_files(hostile) | {"tokenizer_config.json": json.dumps(tokenizer).encode()}
    model = post(shared_client, tar(files)).json()
    kept = {
        name: shared_client.get(f"{MODELS}/{model['id']}/files/{name}").json()
        for name in ("config.json", "tokenizer_config.json")
    }
    assert not hostile.keys() & kept["config.json"].keys()
    assert kept["config.json"]["hidden_size"] == 8
    assert kept["tokenizer_config.json"] == {"tokenizer_class": "BertTokenizer"}
    assert shared_client.delete(f"{MODELS}/{model['id']}").status_code == 204
