"""A job with a model in storage, and a supervisor for it whose engine is a small script."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service import jobs
from service.config import Settings
from service.db import Database
from service.ids import new_id
from service.storage import open_storage
from service.tables import Job, Model
from workers import supervisor

FAKE_ENGINE = (sys.executable, "-I", str(Path(__file__).with_name("fake_engine.py")))
WEIGHTS = b"weights" * 1000

MakeJob = Callable[..., str]
Run = Callable[[str], None]


def add_model(database: Database, settings: Settings) -> str:
    """A model's row, and its one file in storage."""
    model_id = new_id("mdl")
    file = settings.scratch / "weights"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(WEIGHTS)
    open_storage(settings.storage).put(f"models/{model_id}/model.safetensors", file)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    row = Model(
        id=model_id,
        tenant="default",
        name="tiny",
        state="ready",
        family="bert",
        architecture="BertForSequenceClassification",
        task="text-classification",
        parameters=2,
        size=len(WEIGHTS),
        dtype="float32",
        files=[{"path": "model.safetensors", "size": len(WEIGHTS), "sha256": digest}],
        structure={},
        facts={},
        prefix=f"models/{model_id}",
        archive_size=0,
        archive_sha256=digest,
        metadata_={},
    )
    with database.session_scope() as session:
        session.add(row)
    return model_id


@pytest.fixture
def make_job(database: Database, settings: Settings) -> MakeJob:
    """Queue a job whose engine behaves as told: `make_job("hang", timeout=3, started="…")` gives its id."""

    def make(behaviour: str, *, timeout: int = 60, **metadata: str) -> str:
        configuration = {
            "name": "job",
            "metadata": {"behaviour": behaviour, **metadata},
            "model_id": add_model(database, settings),
            "dataset_id": None,
            "priority": 0,
            "timeout": timeout,
        }
        with database.session_scope() as session:
            return jobs.submit(session, jobs.new_job("default", {}, configuration)).id

    return make


@pytest.fixture
def run(settings: Settings) -> Run:
    """Ring for a job: a worker with the fake engine works off what is due, in this process."""

    def attempt(_job_id: str) -> None:
        supervisor.run(settings, engine_command=FAKE_ENGINE, worker_pid=os.getpid())

    return attempt


@pytest.fixture
def run_aside(run: Run) -> Callable[[str], threading.Thread]:
    """The same, in a thread."""

    def aside(job_id: str) -> threading.Thread:
        thread = threading.Thread(target=run, args=(job_id,))
        thread.start()
        return thread

    return aside


def read_job(database: Database, job_id: str) -> Job:
    """The job's row now."""
    with database.session_scope(read_only=True) as session:
        return session.get_one(Job, job_id)
