"""Which jobs give the same result: those whose whole order and whose bytes are the same, whatever they are called."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from service.tables import Artifact, Dataset, Job, Model, utc_now

_ASIDE = frozenset(
    {"name", "metadata", "priority", "timeout", "webhook_url", "reuse", "expires_after", "model_id", "dataset_id"}
)
"""What changes nothing of a result: the model and the data set are told by their bytes, not by their ids."""
_VERSION = version("secateur")  # once: it is read from a file


def fingerprint_of(configuration: Mapping[str, Any], model: Model, dataset: Dataset | None) -> str:
    """SHA-256 in hexadecimal of the resolved order, of the digests of all that it reads, and of our version."""
    told = {
        "order": {name: value for name, value in configuration.items() if name not in _ASIDE},
        "model": sorted([file["path"], file["sha256"]] for file in model.files),
        "dataset": None if dataset is None else {name: facts["sha256"] for name, facts in dataset.splits.items()},
        "version": _VERSION,
    }
    written = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(written.encode()).hexdigest()


def finished_before(session: Session, job: Job) -> Job | None:
    """The tenant's newest succeeded job with the fingerprint of `job` whose model and files are still there."""
    made = exists().where(Model.job_id == Job.id, Model.state == "ready", Model.deleted_at.is_(None))
    same = select(Job).where(
        Job.tenant == job.tenant,
        Job.fingerprint == job.fingerprint,
        Job.status == "succeeded",
        Job.expired_at.is_(None),
        or_(Job.expires_at.is_(None), Job.expires_at > utc_now()),
        or_(made, Job.kind == "inspection"),
        exists().where(Artifact.job_id == Job.id),
    )
    return session.scalar(same.order_by(Job.id.desc()).limit(1))
