"""From the engine's output folder to artifacts and a model."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.downloads import job_archive
from service.jobs import Claim
from service.storage import open_storage
from service.storage.tar import TarLayout
from service.tables import Artifact
from tests.service.samples import FINDINGS
from workers.lease import JobFailed
from workers.publishing import MAX_RESULT_BYTES, Publication, Result, publish, read_result
from workers.staging import Order

HELD = Claim("job_X", 2, "default", 1)
ORDER = Order("pruned", "mdl_PARENT", {}, {}, ())
SIDE: dict[str, Any] = {
    "metrics": {},
    "parameters": 1,
    "nonzero_parameters": 1,
    "size": 4,
    "flops": None,
    "peak_memory": None,
    "latency": [],
    "structure": {"layers": 1, "hidden_size": 2, "attention_heads": [1], "ffn_width": [2], "vocabulary": 3},
}
ENGINE: dict[str, Any] = {"device": "cpu", "peak_memory": None, "seconds": {}, "versions": {}}
RESULT: dict[str, Any] = {
    "verdict": [],
    "passed": True,
    "before": SIDE,
    "after": SIDE,
    "model": {
        "directory": "huggingface",
        "family": "bert",
        "architecture": "BertModel",
        "task": None,
        "parameters": 1,
        "dtype": "float32",
        "structure": SIDE["structure"],
        "facts": {},
    },
    "engine": ENGINE,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work folder as a good engine leaves it."""
    folder = tmp_path / "work"
    for name in ("huggingface/config.json", "huggingface_custom/config.json", "onnx/model.onnx", "report/report.html"):
        file = folder / "out" / name
        file.parent.mkdir(parents=True)
        file.write_text(name)
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def published(folder: Path) -> Publication:
    """Publish a work folder into a storage beside it."""
    storage = open_storage(f"file://{folder.parent / 'storage'}")
    return publish(storage, folder, HELD, ORDER, lambda: None)


def test_the_archive_has_the_directory_at_its_root(folder: Path) -> None:
    publication = published(folder)
    storage = open_storage(f"file://{folder.parent / 'storage'}")
    named = job_archive(publication.artifacts)
    names = ["config.json", "huggingface_custom/config.json", "onnx/model.onnx", "secateur_manifest.json"]
    assert [name for name, _ in named] == names
    layout = TarLayout([(name, artifact.size) for name, artifact in named])
    keys = {name: artifact.key for name, artifact in named}
    tar = b"".join(layout.read(0, layout.size, lambda name: storage.open(keys[name])))
    assert publication.result["archive"]["size"] == len(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        member = archive.extractfile("config.json")
        assert member is not None and member.read() == b"huggingface/config.json"


def test_artifacts_lie_below_the_token(folder: Path) -> None:
    publication = published(folder)
    assert all(artifact.key == f"artifacts/job_X/2/{artifact.path}" for artifact in publication.artifacts)
    assert publication.model is not None
    assert publication.model.prefix == "artifacts/job_X/2/huggingface"
    assert publication.model.parent_model_id == "mdl_PARENT"


def test_a_model_has_the_sizes_that_the_engine_told_and_no_others(folder: Path) -> None:
    model = published(folder).model
    assert model is not None and model.structure == RESULT["model"]["structure"]


def test_an_inspection_has_a_report_and_makes_no_model(folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(FINDINGS))
    storage = open_storage(f"file://{folder.parent / 'storage'}")
    order = replace(ORDER, configuration={"kind": "inspection"})
    publication = publish(storage, folder, HELD, order, lambda: None)
    assert (publication.status, publication.model, publication.result) == ("succeeded", None, FINDINGS)
    assert "report/report.html" in {artifact.path for artifact in publication.artifacts}
    (folder / "result.json").write_text(json.dumps(RESULT))
    with pytest.raises(JobFailed, match="without a complete result"):
        publish(storage, folder, HELD, order, lambda: None)


def test_the_network_folder_is_an_archive_root_too() -> None:
    artifacts = [Artifact(path=path) for path in ("network/config.json", "onnx/model.onnx", "report/report.json")]
    assert [name for name, _ in job_archive(artifacts)] == ["config.json", "onnx/model.onnx"]


@pytest.mark.parametrize(
    "kind", ["link", "folder link", "pipe", "unprintable", "long", "manifest", "archived manifest"]
)
def test_output_that_is_not_plain_files_is_refused(folder: Path, kind: str) -> None:
    place = folder / "out/report"
    match kind:
        case "link":
            (place / "x").symlink_to("/etc/passwd")
        case "folder link":
            (place / "x").symlink_to("/etc")
        case "pipe":
            os.mkfifo(place / "x")
        case "unprintable":
            (place / "x\ny").write_text("")
        case "long":
            deep = place.joinpath(*["d" * 200] * 3)
            deep.mkdir(parents=True)
        case "manifest":
            (folder / "out/manifest.json").write_text("{}")
        case "archived manifest":
            (folder / "out/huggingface/secateur_manifest.json").write_text("{}")
    with pytest.raises(JobFailed, match="output"):
        published(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**RESULT, "passed": "yes"}),
        json.dumps({**RESULT, "before": {**SIDE, "size": float("nan")}}),
        json.dumps({**RESULT, "after": {**SIDE, "x": "\0"}}),
        json.dumps({**RESULT, "after": {**SIDE, "x": "\ud800"}}),
        json.dumps({**RESULT, "after": {}}),
        json.dumps({**RESULT, "verdict": [{}]}),
        json.dumps({**RESULT, "engine": {}}),
        json.dumps({**RESULT, "model": {**RESULT["model"], "directory": "../.."}}),
        "[" * 100_000,
        " " * MAX_RESULT_BYTES + json.dumps(RESULT),
    ],
)
def test_a_result_that_cannot_be_kept_fails_the_job(folder: Path, text: str) -> None:
    (folder / "result.json").write_text(text)
    with pytest.raises(JobFailed, match="without a complete result"):
        read_result(folder, Result)


def test_an_output_folder_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "out").rename(folder.parent / "elsewhere")
    (folder / "out").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(JobFailed, match="a link"):
        published(folder)


def test_a_result_whose_model_is_missing_fails_the_job(folder: Path) -> None:
    (folder / "out/huggingface/config.json").unlink()
    with pytest.raises(JobFailed, match="without the model"):
        published(folder)
