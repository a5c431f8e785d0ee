"""The work folder of one attempt: made, filled from storage, owned, removed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from service import folders
from service.jobs import Claim
from service.storage import Storage, StorageMissing
from service.tables import Dataset, Job, Model
from workers.lease import JobFailed
from workers.provenance import origin_of

KNOWN = ("family", "architecture", "task", "parameters", "dtype", "structure", "facts")
CARD = "README.md"
"""What an earlier job told of its model: another one writes its own."""

_FOLDER = "jobs"
_PIECE = 1 << 20


class Unreadable(OSError):
    """The storage has a file, and cannot read it."""


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
    model_id: str
    configuration: dict[str, Any]
    model: dict[str, Any]
    """What the service knows of the model."""
    inputs: tuple[Input, ...]
    origin: dict[str, Any] = field(default_factory=dict)
    """What the manifest will tell of the job; see `workers.provenance`."""
    batch_divisor: int = 1
    """How many parts a batch is worked through in, so that it fits into memory."""
    checkpoint: dict[str, Any] | None = None
    """From where the attempt goes on: `Job.checkpoint`."""
    request_id: str | None = None
    """Of the request that made the job."""


def read_order(session: Session, held: Claim) -> Order:
    """The order of a job just claimed."""
    job = session.get_one(Job, held.job_id)
    model = session.get_one(Model, job.model_id)
    files = [file for file in model.files if file["path"] != CARD]
    inputs = [Input(f"in/model/{f['path']}", f"{model.prefix}/{f['path']}", f["sha256"]) for f in files]
    dataset = None if job.dataset_id is None else session.get_one(Dataset, job.dataset_id)
    if dataset is not None:
        inputs += [
            Input(f"in/dataset/{split}.jsonl", f"{dataset.prefix}/{split}.jsonl", facts["sha256"])
            for split, facts in dataset.splits.items()
        ]
    known = {name: getattr(model, name) for name in KNOWN}
    origin = origin_of(session, job, model, dataset)
    return Order(
        job.name,
        job.model_id,
        job.configuration,
        known,
        tuple(inputs),
        origin,
        job.batch_divisor,
        job.checkpoint,
        request_id=job.request_id,
    )


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


def stage(
    storage: Storage, folder: Path, order: Order, check: Callable[[], None], *, checkpoint_seconds: float
) -> None:
    """Copy the inputs into `folder`, verifying each digest, and write `order.json`. `check` is called between pieces.

    The engine is to save what it has every `checkpoint_seconds`.
    They are copies, not links, because the engine parses what strangers made: a stored file must stay out of its reach.
    """
    for wanted in order.inputs:
        target = folder / wanted.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = copy(storage, wanted.key, target, check)
        except StorageMissing:
            raise JobFailed("INPUT_MISSING", f"The storage has lost {wanted.path}; upload it again.") from None
        if digest != wanted.sha256:
            raise JobFailed("INPUT_CORRUPT", f"The stored {wanted.path} has changed since its upload; upload it again.")
    told = {
        "configuration": order.configuration,
        "model": order.model,
        "max_threads": len(os.sched_getaffinity(0)),
        "checkpoint_seconds": checkpoint_seconds,
        "batch_divisor": order.batch_divisor,
    }
    (folder / "order.json").write_text(json.dumps(told))


def copy(storage: Storage, key: str, target: Path, check: Callable[[], None]) -> str:
    """Copy a stored file to `target`; returns its SHA-256. Raises `StorageMissing` and `Unreadable`."""
    digest = hashlib.sha256()
    with storage.open(key) as source, target.open("xb") as sink:
        for piece in _pieces(source):
            digest.update(piece)
            sink.write(piece)
            check()
    return digest.hexdigest()


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := source.read(_PIECE):
            yield piece
    except OSError as error:
        raise Unreadable(error.errno, error.strerror) from error
