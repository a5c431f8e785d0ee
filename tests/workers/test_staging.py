"""Work folders of attempts."""

import json
from pathlib import Path

import pytest

from service.config import Settings
from service.db import Database
from service.jobs import Claim
from service.storage import open_storage
from service.tables import Job, Model
from tests.workers.conftest import WEIGHTS, MakeJob
from workers.lease import Halt, JobFailed
from workers.staging import read_order, stage, sweep, work_folder

HELD = Claim("job_X", 3, "default", 1)


def test_a_work_folder_is_private_and_goes_with_its_attempt(tmp_path: Path) -> None:
    with work_folder(tmp_path, HELD) as folder:
        assert folder.name == "job_X-3" and folder.stat().st_mode & 0o077 == 0
        (folder / "scratch/left").write_text("over")
    assert not folder.exists()


def test_the_sweep_spares_the_living(tmp_path: Path) -> None:
    dead = tmp_path / "jobs/job_DEAD-1"
    (dead / "in").mkdir(parents=True)
    with work_folder(tmp_path, HELD) as folder:
        sweep(tmp_path)
        assert folder.exists() and not dead.exists()


def test_inputs_are_copies(database: Database, settings: Settings, make_job: MakeJob, tmp_path: Path) -> None:
    job_id = make_job("any")
    with database.session_scope() as session:
        order = read_order(session, Claim(job_id, 1, "default", 1))
    stage(open_storage(settings.storage), tmp_path, order, lambda: None, checkpoint_seconds=60)
    staged = tmp_path / "in/model/model.safetensors"
    assert staged.read_bytes() == WEIGHTS and staged.stat().st_nlink == 1
    assert json.loads((tmp_path / "order.json").read_text())["configuration"]["metadata"] == {"behaviour": "any"}


def test_the_card_of_an_earlier_job_is_left_out(database: Database, make_job: MakeJob) -> None:
    job_id = make_job("any")
    with database.session_scope() as session:
        model = session.get_one(Model, session.get_one(Job, job_id).model_id)
        model.files = [*model.files, {"path": "README.md", "size": 1, "sha256": "0" * 64}]
        order = read_order(session, Claim(job_id, 1, "default", 1))
    assert [wanted.path for wanted in order.inputs] == ["in/model/model.safetensors"]


def test_a_missing_input_is_told(database: Database, settings: Settings, make_job: MakeJob, tmp_path: Path) -> None:
    job_id = make_job("any")
    storage = open_storage(settings.storage)
    with database.session_scope() as session:
        order = read_order(session, Claim(job_id, 1, "default", 1))
        storage.delete_prefix(f"models/{session.get_one(Job, job_id).model_id}")
    with pytest.raises(JobFailed) as failure:
        stage(storage, tmp_path, order, lambda: None, checkpoint_seconds=60)
    assert failure.value.code == "INPUT_MISSING"


def test_staging_stops_when_the_job_does(
    database: Database, settings: Settings, make_job: MakeJob, tmp_path: Path
) -> None:
    job_id = make_job("any")
    with database.session_scope() as session:
        order = read_order(session, Claim(job_id, 1, "default", 1))

    def check() -> None:
        raise Halt("cancelling")

    with pytest.raises(Halt):
        stage(open_storage(settings.storage), tmp_path, order, check, checkpoint_seconds=60)
