"""Jobs by a supervisor whose engines are confined: what they do there, and what becomes of the worker."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from service.config import Settings
from service.db import Database
from service.tables import Attempt
from tests.models import tiny_dataset, tiny_model
from tests.workers.conftest import MakeJob, read_job
from tests.workers.engine.test_main import order
from tests.workers.sandbox.conftest import finish
from workers import supervisor
from workers.sandbox import Engine

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
Confined = Callable[..., None]


@pytest.fixture
def run_confined(bubblewrap: str, settings: Settings) -> Confined:
    """A worker in the sandbox that works off what is due, with the fake engine, in this process."""

    def attempt(**told: int) -> None:
        confined = settings.model_copy(update={"sandbox": bubblewrap, **told})
        command = (sys.executable, "-I", "-c", FAKE_ENGINE.read_text())
        supervisor.run(confined, engine_command=command, worker_pid=os.getpid())

    return attempt


def test_a_confined_job_succeeds_after_others_failed(
    database: Database, make_job: MakeJob, run_confined: Confined
) -> None:
    expected = {"say_why": "GPU_OUT_OF_MEMORY", "exit": "ENGINE_ERROR", "link": "ENGINE_ERROR"}
    failing = {make_job(behaviour): code for behaviour, code in expected.items()}
    outside = make_job("wait", started="/var/tmp/started", go="/var/tmp/go")  # it is never written
    good = make_job("succeed")
    run_confined()
    for job_id, code in (failing | {outside: "ENGINE_ERROR"}).items():
        job = read_job(database, job_id)
        assert job.status == "failed" and job.error is not None and job.error["code"] == code
    assert read_job(database, good).status == "succeeded"


def outcome(database: Database, job_id: str) -> str | None:
    """How the job's only attempt ended."""
    with database.session_scope(read_only=True) as session:
        return session.scalars(select(Attempt.outcome).where(Attempt.job_id == job_id)).one()


@pytest.mark.parametrize(("number", "told"), [(9, "engine_killed"), (11, "engine_crashed"), (24, "failed")])
def test_a_confined_engines_death_is_told_as_any(
    database: Database, make_job: MakeJob, run_confined: Confined, number: int, told: str
) -> None:
    job_id = make_job("die", signal=str(number))
    run_confined()
    assert outcome(database, job_id) == told


def test_a_job_on_a_full_disk_ends_before_the_disk_does(
    database: Database, make_job: MakeJob, run_confined: Confined
) -> None:
    job_id = make_job("ignore_sigterm", started="out/started")
    run_confined(disk_reserve_bytes=1 << 60, kill_grace_seconds=1)
    assert outcome(database, job_id) == "no_space"


def test_a_sandbox_that_is_gone_fails_the_job_which_never_runs_without(
    database: Database, make_job: MakeJob, run_confined: Confined, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job_id = make_job("succeed")
    monkeypatch.setenv("PATH", str(tmp_path))
    run_confined()
    job = read_job(database, job_id)
    assert (job.result, job.status) == (None, "queued")
    assert outcome(database, job_id) == "sandbox_error"


def test_a_real_job_makes_the_same_weights_inside_as_outside(bubblewrap: str, tmp_path: Path) -> None:
    inside, outside = (carry_out(level, tmp_path / level / "work") for level in (bubblewrap, "process"))
    assert inside == outside


def carry_out(level: str, folder: Path) -> str:
    """Train and cut a tiny network; the digest of its weights."""
    tiny_model(folder / "in" / "model")
    tiny_dataset(folder / "in" / "dataset", train=32, validation=16, test=16)
    cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}
    tuning = {"epochs": 1, "learning_rate": 1e-3}
    order(folder, dataset_id="ds_" + "0" * 26, pruning={"cuts": [cut]}, finetuning=tuning, exports=["huggingface"])
    settings = Settings(sandbox=level, data_dir=folder.parent)
    running = Engine(supervisor.ENGINE, folder, settings, lambda data: None, timeout=120)
    assert finish(running) == 0, running.log()
    names = {"in", "order.json", "out", "result.json", "scratch", "checkpoints"}
    assert {path.name for path in folder.iterdir()} <= names
    return hashlib.sha256((folder / "out/huggingface/model.safetensors").read_bytes()).hexdigest()
