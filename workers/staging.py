"""The work folder of one attempt: made, filled from storage, owned, removed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service import folders
from service.jobs import Claim
from service.storage import Storage, StorageMissing
from service.tables import Dataset, Job, Model
from workers.lease import JobFailed

KNOWN = ("family", "architecture", "task", "parameters", "dtype", "structure", "facts")
_FOLDER = "jobs"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Input:
    """One file that the engine reads: its place below the work folder and its bytes' digest."""

    path: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Order:
    """What a worker needs of a claimed job."""

    name: str
    priority: int
    model_id: str
    configuration: dict[str, Any]
    model: dict[str, Any]
    """What the service knows of the model."""
    inputs: tuple[Input, ...]


def read_order(session: Session, held: Claim) -> Order:
    """The order of a job just claimed."""
    job = session.get_one(Job, held.job_id)
    model = session.get_one(Model, job.model_id)
    inputs = [Input(f"in/model/{f['path']}", f"{model.prefix}/{f['path']}", f["sha256"]) for f in model.files]
    if job.dataset_id is not None:
        dataset = session.get_one(Dataset, job.dataset_id)
        inputs += [
            Input(f"in/dataset/{split}.jsonl", f"{dataset.prefix}/{split}.jsonl", facts["sha256"])
            for split, facts in dataset.splits.items()
        ]
    known = {name: getattr(model, name) for name in KNOWN}
    return Order(job.name, job.priority, job.model_id, job.configuration, known, tuple(inputs))


@contextmanager
def work_folder(scratch: Path, held: Claim) -> Iterator[Path]:
    """A folder of this attempt alone, removed when the block ends."""
    folder = scratch / _FOLDER / f"{held.job_id}-{held.token}"
    folder.mkdir(parents=True, mode=0o700)
    with folders.owned(folder):
        for name in ("in", "out", "scratch"):
            (folder / name).mkdir()
        yield folder


def sweep(scratch: Path) -> None:
    """Remove the folders of attempts whose owner has died."""
    folders.sweep(scratch / _FOLDER)


def stage(storage: Storage, folder: Path, order: Order, check: Callable[[], None]) -> None:
    """Copy the inputs into `folder`, verifying each digest, and write `order.json`. `check` is called between pieces.

    They are copies, not links, because the engine parses what strangers made: a stored file must stay out of its reach.
    """
    for wanted in order.inputs:
        target = folder / wanted.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = _copy(storage, wanted.key, target, check)
        except StorageMissing:
            raise JobFailed("INPUT_MISSING", f"The storage has lost {wanted.path}; upload it again.") from None
        if digest != wanted.sha256:
            raise JobFailed("INPUT_CORRUPT", f"The stored {wanted.path} has changed since its upload; upload it again.")
    told = {"configuration": order.configuration, "model": order.model, "max_threads": len(os.sched_getaffinity(0))}
    (folder / "order.json").write_text(json.dumps(told))


def _copy(storage: Storage, key: str, target: Path, check: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with storage.open(key) as source, target.open("xb") as sink:
        while piece := source.read(_PIECE):
            digest.update(piece)
            sink.write(piece)
            check()
    return digest.hexdigest()
