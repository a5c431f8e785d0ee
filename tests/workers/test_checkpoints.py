"""Checkpoints with an engine that counts: what is saved is gone on from, what is broken is not, nothing is left."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import select

from service import checkpoints, jobs, lifecycle
from service.config import Settings
from service.db import Database, db_epoch
from service.storage import open_storage
from service.tables import Attempt, Event, Job
from tests.databases import on_databases
from tests.processes import wait_for
from tests.workers.conftest import MakeJob, Run, read_job
from workers.supervisor import drain_file

Aside = Callable[[str], Thread]


def stored(settings: Settings, job_id: str) -> list[str]:
    """Keys of the job's checkpoints."""
    return list(open_storage(settings.storage).list(f"checkpoints/{job_id}"))


def outcomes(database: Database, job_id: str) -> list[str | None]:
    """How the job's attempts ended."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Attempt.outcome).where(Attempt.job_id == job_id).order_by(Attempt.token)))


def events(database: Database, job_id: str) -> list[str]:
    """Types of the job's events."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.id)))


def starts(file: Path) -> list[int]:
    """Steps at which attempts began."""
    return [int(step) for step in file.read_text().split()]


def ask(database: Database, job_id: str, step: Callable[..., object]) -> None:
    """Do to the job what a client asks for."""
    with database.session_scope() as session:
        step(session, session.get_one(Job, job_id))


def saved(database: Database, job_id: str) -> int:
    """Step of the job's checkpoint; 0 without one."""
    checkpoint = read_job(database, job_id).checkpoint
    return 0 if checkpoint is None else int(checkpoint["step"])


@on_databases
def test_a_paused_job_goes_on_from_what_it_saved_last(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, run_aside: Aside, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = make_job("train", started=str(started), steps="100000")
    thread = run_aside(job_id)
    wait_for(lambda: saved(database, job_id) >= 10)
    for _ in range(2):
        ask(database, job_id, lifecycle.pause)
    thread.join()
    job = read_job(database, job_id)
    assert (job.status, job.phase, job.worker, job.lease_until, job.attempts) == ("paused", None, None, None, 0)
    assert job.checkpoint is not None and job.checkpoint["step"] % 5 != 0, "saved when it was asked to leave"
    noted = checkpoints.newest_first(job.checkpoint)
    assert len(noted) == 2 and noted[0]["step"] > noted[1]["step"]
    assert {key.rpartition("/")[0] for key in stored(settings, job_id)} == {saved["key"] for saved in noted}
    with database.session_scope() as session:
        row = session.get_one(Job, job_id)
        metadata = {**row.configuration["metadata"], "steps": str(job.checkpoint["step"] + 3)}
        row.configuration = {**row.configuration, "metadata": metadata}
    ask(database, job_id, lifecycle.resume)
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "succeeded", job.error
    assert starts(started) == [0, int(metadata["steps"]) - 3]
    assert outcomes(database, job_id) == ["paused", "succeeded"]
    assert job.checkpoint is None and stored(settings, job_id) == []
    told = [event for event in events(database, job_id) if event.startswith("job.")]
    assert told == [
        "job.queued",
        "job.started",
        "job.pausing",
        "job.paused",
        "job.resumed",
        "job.started",
        "job.succeeded",
    ]


def test_a_worker_that_died_costs_what_was_done_since_the_checkpoint(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, run_aside: Aside, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = make_job("train", started=str(started), steps="100")
    thread = run_aside(job_id)
    wait_for(lambda: saved(database, job_id) >= 10)
    with database.session_scope() as session:  # as after the death of the worker
        session.get_one(Job, job_id).lease_until = session.scalar(select(db_epoch())) - 1  # type: ignore[operator]
        jobs.reconcile(session, settings.max_attempts)
        at = session.get_one(Job, job_id).checkpoint
    thread.join()
    run(job_id)
    assert at is not None and starts(started) == [0, at["step"]]
    assert outcomes(database, job_id) == ["worker_lost", "succeeded"]
    assert stored(settings, job_id) == []


def test_a_worker_that_leaves_lets_the_engine_save(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path
) -> None:
    job_id = make_job("train", started=str(tmp_path / "started"), steps="100000")
    thread = run_aside(job_id)
    wait_for(lambda: saved(database, job_id) >= 5)
    drain_file(settings.scratch, os.getpid()).touch()
    thread.join()
    job = read_job(database, job_id)
    assert (job.status, job.attempts) == ("queued", 0)
    assert job.checkpoint is not None and job.checkpoint["step"] % 5 != 0
    assert outcomes(database, job_id) == ["returned"]


def test_a_cancelled_job_saves_nothing_and_leaves_nothing(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path
) -> None:
    job_id = make_job("train", started=str(tmp_path / "started"), steps="100000")
    thread = run_aside(job_id)
    wait_for(lambda: saved(database, job_id) >= 5)
    ask(database, job_id, jobs.cancel)
    thread.join()
    job = read_job(database, job_id)
    assert (job.status, job.checkpoint) == ("cancelled", None)
    assert stored(settings, job_id) == []


def test_a_job_out_of_time_keeps_what_it_saved(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = make_job("train", timeout=1, started=str(started), steps="100000")
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "failed" and job.error is not None and job.error["code"] == "TIMEOUT"
    assert job.checkpoint is not None and stored(settings, job_id)
    ask(database, job_id, lifecycle.retry)
    run(job_id)
    assert starts(started) == [0, job.checkpoint["step"]]
    ask(database, job_id, lambda session, row: lifecycle.retry(session, row, "start"))
    run(job_id)
    assert starts(started)[2] == 0


def damage(settings: Settings, key: str, how: str) -> None:
    """Do to a stored checkpoint what disks do."""
    file = Path(settings.storage.removeprefix("file://"), key, "weights.safetensors")
    data = file.read_bytes()
    match how:
        case "flip":
            file.write_bytes(b"x" + data[1:])
        case "cut":
            file.write_bytes(data[:-1])
        case "remove":
            file.unlink()


@pytest.mark.parametrize("both", [False, True], ids=["newest", "both"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_of_a_damaged_checkpoint_the_one_before_serves(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, tmp_path: Path, how: str, both: bool
) -> None:
    started = tmp_path / "started"
    job_id = make_job("train", timeout=1, started=str(started), steps="100000")
    run(job_id)
    newest, before = checkpoints.newest_first(read_job(database, job_id).checkpoint)
    for saved in (newest, before) if both else (newest,):
        damage(settings, saved["key"], how)
    ask(database, job_id, lifecycle.retry)
    run(job_id)
    begun = 0 if both else before["step"]
    assert starts(started) == [0, begun]
    with database.session_scope(read_only=True) as session:
        lost = session.scalars(select(Event).where(Event.type == "job.checkpoint_lost")).one()
    assert lost.data == {"step": newest["step"], "from_step": begun}
    after = checkpoints.newest_first(read_job(database, job_id).checkpoint)
    assert len(after) == 2 and all(saved["step"] > begun for saved in after)
    swept = checkpoints.sweep(database, open_storage(settings.storage))
    assert set(swept) <= {newest["key"], before["key"]}
    assert {key.rpartition("/")[0] for key in stored(settings, job_id)} == {saved["key"] for saved in after}


def test_what_is_no_checkpoint_is_not_stored(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    job_id = make_job("train", timeout=1, started=str(tmp_path / "started"), steps="100000", **{"break": "link"})
    run(job_id)
    assert read_job(database, job_id).checkpoint is None
    assert stored(settings, job_id) == []


@on_databases
def test_batches_are_halved_until_they_fit(database: Database, make_job: MakeJob, run: Run) -> None:
    job_id = make_job("out_of_memory", fits="4")
    run(job_id)
    job = read_job(database, job_id)
    assert (job.status, job.batch_divisor, job.attempts) == ("succeeded", 4, 3)
    assert outcomes(database, job_id) == ["out_of_memory", "out_of_memory", "succeeded"]
    assert events(database, job_id).count("job.batch_halved") == 2
    assert [warning["code"] for warning in job.advice] == ["BATCH_HALVED"]


def test_batches_of_one_row_are_not_halved(database: Database, make_job: MakeJob, run: Run) -> None:
    job_id = make_job("out_of_memory", fits="4")
    with database.session_scope() as session:
        row = session.get_one(Job, job_id)
        row.configuration = {**row.configuration, "finetuning": {"batch_size": 2}}
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "failed" and job.error is not None and job.error["code"] == "OUT_OF_MEMORY"
    assert (job.batch_divisor, outcomes(database, job_id)) == (2, ["out_of_memory"] * 2)


@on_databases
def test_the_sweep_takes_what_no_job_goes_on_from(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    job_id = make_job("train", timeout=1, started=str(tmp_path / "started"), steps="100000")
    run(job_id)
    storage = open_storage(settings.storage)
    kept = stored(settings, job_id)
    job = read_job(database, job_id)
    orphans = [f"checkpoints/{job_id}/{job.token}/999", f"checkpoints/{job_id.replace('0', '1')}/1/1"]
    for prefix in orphans:
        file = tmp_path / "file"
        file.write_text("x")
        storage.put(f"{prefix}/checkpoint.json", file)
    assert checkpoints.sweep(database, storage) == orphans[:1]
    assert checkpoints.sweep(database, storage, grace_seconds=-1e12) == [orphans[1].rpartition("/1/")[0]]
    assert stored(settings, job_id) == kept
