"""The manifest of a compression: every file that it left, and what it takes to trace them and to make them again.

Its JSON has one form only (sorted names, no blanks, UTF-8), so that its bytes can be signed. It names no tenant. It
tells times, and so differs between two jobs that gave the same weights; nothing else in it has to.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.downloads import job_archive
from service.jobs import Claim
from service.tables import Artifact, Attempt, Dataset, Job, Model, utc_now

VERSION = 1
"""Of the manifest's form: it grows when a field that is there today goes or changes its meaning."""


def origin_of(session: Session, job: Job, model: Model, dataset: Dataset | None) -> dict[str, Any]:
    """What is known of a job when it has just been claimed: its inputs by their digests, and its way to this attempt.

    All of it JSON values, in the manifest's own fields.
    """
    attempts = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.token))
    return {
        "job_id": job.id,
        "inputs": {"model": _model_input(model), "dataset": None if dataset is None else _dataset_input(dataset)},
        "configuration": job.configuration,
        "seed": job.configuration.get("seed"),
        "batch_divisor": job.batch_divisor,
        "resumed_from_checkpoint": job.checkpoint is not None,
        "worker": job.worker,
        "attempts": [_attempt(number, attempt) for number, attempt in enumerate(attempts, start=1)],
        "created_at": _written(job.created_at),
        "started_at": _written(job.started_at),
    }


def _model_input(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "archive": {"size": model.archive_size, "sha256": model.archive_sha256},
        "files": model.files,
        "job_id": model.job_id,
        "parent_model_id": model.parent_model_id,
    }


def _dataset_input(dataset: Dataset) -> dict[str, Any]:
    return {"id": dataset.id, "splits": dataset.splits}


def _attempt(number: int, attempt: Attempt) -> dict[str, Any]:
    return {
        "number": number,
        "worker": attempt.worker,
        "started_at": _written(attempt.started_at),
        "finished_at": _written(attempt.finished_at),
        "outcome": attempt.outcome,
    }


def _written(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def manifest_of(
    origin: dict[str, Any], held: Claim, engine: dict[str, Any], model: Model, artifacts: Sequence[Artifact]
) -> bytes:
    """The manifest of a job whose files are all stored: `engine` is what its result tells of the engine.

    `files` has every artifact but the manifest itself; `archive_path` is a file's name in the archive of the job, null
    where it is left out of that.
    """
    names = {artifact.path: name for name, artifact in job_archive(artifacts)}
    told = {
        **origin,
        "object": "manifest",
        "version": VERSION,
        "job_id": held.job_id,
        "files": [
            {"path": a.path, "archive_path": names.get(a.path), "size": a.size, "sha256": a.sha256} for a in artifacts
        ],
        "model": {"id": model.id, "archive": {"size": model.archive_size, "sha256": model.archive_sha256}},
        "device": engine.get("device"),
        "versions": {**engine.get("versions", {}), "secateur": version("secateur")},
        "finished_at": _written(utc_now()),
    }
    return canonical(told)


def canonical(value: dict[str, Any]) -> bytes:
    """JSON in the one form of its kind, which ends in a line feed."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
