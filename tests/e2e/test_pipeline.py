"""The whole way through HTTP: upload, job, poll, download, load without our code."""

import hashlib
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.live import LiveService
from tests.models import tiny_dataset, tiny_model

LOAD = """
import sys
from transformers import AutoModelForSequenceClassification, pipeline
network = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
print(sorted({layer.intermediate.dense.out_features for layer in network.bert.encoder.layer}))
"""


def tar_of(folder: Path) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(folder, arcname="model")
    return held.getvalue()


def upload(service: LiveService, folder: Path) -> tuple[str, str]:
    """A bare encoder and a data set; returns their ids."""
    archive = tar_of(tiny_model(folder / "model", head=False))
    model = service.client.post(
        "/v1/models", params={"name": "tiny"}, content=archive, headers={"Content-Type": "application/x-tar"}
    )
    assert model.status_code == 201, model.text
    splits = tiny_dataset(folder / "data")
    files = {path.stem: path.read_bytes() for path in splits.glob("*.jsonl")}
    data = service.client.post("/v1/datasets", params={"name": "tiny", "task": "text-classification"}, files=files)
    assert data.status_code == 201, data.text
    return model.json()["id"], data.json()["id"]


def spec_of(model: str, dataset: str, **parts: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model_id": model,
        "dataset_id": dataset,
        "task": "text-classification",
        "baseline": {"epochs": 2, "learning_rate": 3e-3},
        "pruning": {"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}]},
        "finetuning": {"epochs": 1, "distillation": {}},
        "benchmark": {"batch_sizes": [1], "sequence_length": 8},
        "max_length": 16,
        "device": "cpu",
    } | parts


def wait(service: LiveService, job: str, seconds: float = 180) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        view: dict[str, Any] = service.client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=5"}).json()
        if view["status"] in ("succeeded", "rejected", "failed", "cancelled"):
            return view
        assert time.monotonic() < deadline, f"{view}\n{service.log()}"


def test_an_encoder_goes_up_and_a_pruned_classifier_comes_down(live_service: LiveService, tmp_path: Path) -> None:
    client = live_service.client
    model, dataset = upload(live_service, tmp_path)
    order = spec_of(model, dataset, exports=["huggingface", "onnx"])
    posted = client.post("/v1/jobs", json=order, headers={"Idempotency-Key": "once"})
    assert posted.status_code == 202, posted.text
    job = posted.json()["id"]
    assert client.post("/v1/jobs", json=order, headers={"Idempotency-Key": "once"}).json()["id"] == job

    view = wait(live_service, job)
    assert view["status"] == "succeeded", f"{view['error']}\n{live_service.log()}"
    assert view["result"]["after"]["structure"]["ffn_width"] == [24, 24]
    assert client.get(f"/v1/models/{view['result']['model_id']}").json()["parent_model_id"] == model
    assert client.get(f"/v1/jobs/{job}/metrics").json()["data"]
    assert client.get(f"/v1/jobs/{job}/events").json()["data"][0]["type"] == "job.queued"
    report = client.get(f"/v1/jobs/{job}/report", headers={"Accept": "text/html"})
    assert report.headers["content-type"].startswith("text/html")

    archive = client.get(f"/v1/jobs/{job}/model")
    assert archive.headers["etag"].strip('"') == hashlib.sha256(archive.content).hexdigest()
    half = client.get(f"/v1/jobs/{job}/model", headers={"Range": "bytes=1000-1999"})
    assert half.status_code == 206 and half.content == archive.content[1000:2000]
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as held:
        names = held.getnames()
        held.extractall(tmp_path / "pruned", filter="data")
    assert "onnx/model.onnx" in names
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, tmp_path / "pruned"], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[24]"


def test_a_model_of_a_family_that_nobody_knows(live_service: LiveService, tmp_path: Path) -> None:
    client, folder = live_service.client, tmp_path / "novel"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "novel", "architectures": ["NovelModel"]}')
    weights = {"blocks.0.mix.weight": torch.randn(64, 64), "embeddings.weight": torch.randn(8, 64)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    headers = {"Content-Type": "application/x-tar"}
    model = client.post("/v1/models", params={"name": "novel"}, content=tar_of(folder), headers=headers).json()
    cut = {"structure": "weights", "pattern": "2:4", "criterion": {"kind": "magnitude"}}
    order = {"name": "novel", "model_id": model["id"], "task": "causal-lm", "pruning": {"cuts": [cut]}}
    view = wait(live_service, client.post("/v1/jobs", json=order).json()["id"])
    assert view["status"] == "succeeded", f"{view['error']}\n{live_service.log()}"
    after = view["result"]["after"]
    assert (after["parameters"], after["nonzero_parameters"], after["flops"]) == (4608, 4608 - 2048, None)
    assert after["compressed_size"] < after["size"]
    pruned = client.get(f"/v1/models/{view['result']['model_id']}").json()
    assert (pruned["family"], pruned["supported"]["structures"]) == ("novel", ["weights"])
    made = {artifact["path"] for artifact in client.get(f"/v1/jobs/{view['id']}/artifacts").json()["data"]}
    assert {"huggingface/model.safetensors", "compressed/model.bitmask.safetensors", "compressed/unpack.py"} <= made


@pytest.mark.parametrize(
    ("parts", "pointer"),
    [
        (
            {"pruning": {"cuts": [{"structure": "attention_heads", "ratio": 0.5, "criterion": {"kind": "taylor"}}]}},
            "/exports/0",
        ),
        ({"baseline": None}, "/baseline"),
        ({"max_length": 4096}, "/max_length"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(
    live_service: LiveService, tmp_path: Path, parts: dict[str, Any], pointer: str
) -> None:
    model, dataset = upload(live_service, tmp_path)
    answer = live_service.client.post("/v1/jobs", json=spec_of(model, dataset, **parts))
    assert answer.status_code == 422
    assert pointer in [fault["pointer"] for fault in answer.json()["errors"]]
    assert live_service.client.get("/v1/jobs").json()["data"] == []
