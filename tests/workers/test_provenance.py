"""The manifest of a job: complete, true of every file, in one form only."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import pytest
from sqlalchemy import select

from service import jobs
from service.config import Settings
from service.db import Database
from service.jobs import Claim
from service.storage import open_storage
from service.tables import Artifact, Job, Model
from tests.databases import on_databases
from tests.service.samples import a_dataset, a_job, a_model, store
from tests.workers.conftest import WEIGHTS, MakeJob, Run, read_job
from workers.provenance import canonical, manifest_of, origin_of


def published(database: Database, settings: Settings, job_id: str) -> tuple[bytes, dict[str, Artifact]]:
    """The manifest of a finished job, and all of its artifacts by their paths."""
    with database.session_scope(read_only=True) as session:
        artifacts = {a.path: a for a in session.scalars(select(Artifact).where(Artifact.job_id == job_id))}
    with open_storage(settings.storage).open(artifacts["manifest.json"].key) as file:
        return file.read(), artifacts


@on_databases
def test_it_tells_of_every_file_and_of_what_made_them(
    database: Database, settings: Settings, make_job: MakeJob, run: Run
) -> None:
    job_id = make_job("succeed")
    run(job_id)
    job = read_job(database, job_id)
    assert job.result is not None
    content, artifacts = published(database, settings, job_id)
    told = json.loads(content)
    own = artifacts.pop("manifest.json")
    assert (own.kind, own.media_type, own.size) == ("manifest", "application/json", len(content))
    assert {file["path"]: (file["size"], file["sha256"]) for file in told["files"]} == {
        path: (artifact.size, artifact.sha256) for path, artifact in artifacts.items()
    }
    names = {file["path"]: file["archive_path"] for file in told["files"]}
    assert names["huggingface/model.safetensors"] == "model.safetensors"
    assert names["onnx/model.onnx"] == "onnx/model.onnx"
    assert names["report/report.html"] is None
    assert (told["object"], told["version"], told["job_id"]) == ("manifest", 1, job_id)
    with database.session_scope(read_only=True) as session:
        model = session.get_one(Model, job.result["model_id"])
    assert told["model"] == {
        "id": model.id,
        "archive": {"size": model.archive_size, "sha256": model.archive_sha256},
    }
    assert told["versions"]["secateur"] == version("secateur")
    assert told["device"] == "cpu"
    assert told["configuration"] == job.configuration
    assert told["created_at"] < told["started_at"] < told["finished_at"] and told["finished_at"].endswith("Z")


@on_databases
def test_inputs_are_named_by_their_digests_and_the_tenant_not_at_all(
    database: Database, settings: Settings, make_job: MakeJob, run: Run
) -> None:
    job_id = make_job("succeed")
    run(job_id)
    content, _ = published(database, settings, job_id)
    source = json.loads(content)["inputs"]["model"]
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert source["id"] == read_job(database, job_id).model_id
    assert source["archive"] == {"size": 0, "sha256": digest}
    assert source["files"] == [{"path": "model.safetensors", "size": len(WEIGHTS), "sha256": digest}]
    assert b"tenant" not in content and b'"default"' not in content


@on_databases
def test_attempts_seed_data_and_a_checkpoint_are_told(database: Database) -> None:
    dataset = store(database, a_dataset())
    job = a_job(store(database, a_model()).id, dataset_id=dataset.id)
    job.configuration |= {"seed": 7}
    with database.session_scope() as session:
        jobs.submit(session, job)
        lost = jobs.claim(session, job.id, "w1", 60)
        assert lost is not None
        jobs.give_back(session, lost)
        session.get_one(Job, job.id).checkpoint = {"key": "checkpoints/x/1", "files": [], "step": 3, "token": 1}
        session.flush()
        assert jobs.claim(session, job.id, "w2", 60)
        row = session.get_one(Job, job.id)
        told = origin_of(session, row, session.get_one(Model, row.model_id), dataset)
    assert (told["seed"], told["worker"], told["resumed_from_checkpoint"]) == (7, "w2", True)
    assert [(a["number"], a["worker"], a["outcome"]) for a in told["attempts"]] == [
        (1, "w1", "returned"),
        (2, "w2", None),
    ]
    assert told["inputs"]["dataset"] == {"id": dataset.id, "splits": dataset.splits}


def test_an_engine_cannot_say_another_version_of_ours() -> None:
    engine: dict[str, Any] = {"device": "cpu", "versions": {"secateur": "9", "torch": "2"}}
    told = json.loads(manifest_of({}, Claim("job_1", 1, "default", 1), engine, a_model(), []))
    assert told["versions"] == {"secateur": version("secateur"), "torch": "2"}


def test_there_is_one_form() -> None:
    assert canonical({"b": 1, "a": "ü", "c": [0.5]}) == '{"a":"ü","b":1,"c":[0.5]}\n'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": float("nan")})
