"""A finished job whose artifacts and model lie in the application's storage."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from service import jobs
from service.downloads import job_archive
from service.ids import new_id
from service.storage.tar import TarLayout
from service.tables import Artifact, Dataset, Job, Model
from tests.service.samples import RESULT, TENANT, a_dataset, a_model, an_artifact, store, submitted

FILES = {
    "huggingface/config.json": b"{}",
    "huggingface/model.safetensors": bytes(range(256)) * 40,
    "onnx/model.onnx": b"onnx" * 100,
    "report/report.html": b"<!doctype html><h1>Report</h1>",
    "report/report.json": b'{"report": true}',
}


@dataclass(frozen=True)
class Published:
    """The rows."""

    job: Job
    model: Model
    dataset: Dataset
    artifacts: dict[str, Artifact]


def publish(app: FastAPI, folder: Path, tenant: str = TENANT, status: str = "succeeded") -> Published:
    """Put the bytes, then finish a job over them as a worker does."""
    database, storage = app.state.database, app.state.storage
    job = submitted(database, tenant=tenant)
    dataset = store(database, a_dataset(tenant=tenant))
    for path, content in FILES.items():
        (folder / "staged").write_bytes(content)
        storage.put(f"artifacts/{job.id}/1/{path}", folder / "staged")
    artifacts = [
        an_artifact(job, path, content, hashlib.sha256(content).hexdigest(), f"artifacts/{job.id}/1/{path}")
        for path, content in FILES.items()
    ]
    archive = _archive(app, job_archive(artifacts))
    own = [artifact for artifact in artifacts if artifact.path.startswith("huggingface/")]
    alone = _archive(app, [(artifact.path.partition("/")[2], artifact) for artifact in own])
    model = a_model(
        id=new_id("mdl"),
        tenant=tenant,
        job_id=job.id,
        parent_model_id=job.model_id,
        prefix=f"artifacts/{job.id}/1/huggingface",
        archive_size=alone["size"],
        archive_sha256=alone["sha256"],
        files=[
            {"path": artifact.path.partition("/")[2], "size": artifact.size, "sha256": artifact.sha256}
            for artifact in own
        ],
    )
    result = {**RESULT, "model_id": model.id, "archive": archive}
    with database.session_scope() as session:
        claim = jobs.claim(session, job.id, "w1", 60)
        assert claim is not None
        assert jobs.finish(session, claim, status, result, model, artifacts)
    return Published(job, model, dataset, {artifact.path: artifact for artifact in artifacts})


def _archive(app: FastAPI, named: list[tuple[str, Artifact]]) -> dict[str, Any]:
    """Size and digest of these files as one tar."""
    keys = {name: artifact.key for name, artifact in named}
    layout = TarLayout([(name, artifact.size) for name, artifact in named])
    return {"size": layout.size, "sha256": layout.sha256(lambda name: app.state.storage.open(keys[name]))}
