"""The supervisor with an engine that does as it is told."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service import jobs
from service.config import Settings
from service.db import Database, db_epoch
from service.jobs import Claim
from service.lifecycle import pause
from service.storage import open_storage
from service.tables import Artifact, Attempt, Event, Job, MetricPoint, Model
from tests.databases import on_databases
from tests.processes import gone, wait_for
from tests.workers.conftest import WEIGHTS, MakeJob, Run, read_job
from workers import publishing, staging, supervisor
from workers.supervisor import drain_file

Aside = Callable[[str], Thread]


def stored(settings: Settings, job_id: str) -> list[str]:
    """Keys of the job's files in storage."""
    return list(open_storage(settings.storage).list(f"artifacts/{job_id}"))


def outcomes(database: Database, job_id: str) -> list[str | None]:
    """How the job's attempts ended."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Attempt.outcome).where(Attempt.job_id == job_id).order_by(Attempt.token)))


@on_databases
def test_a_job_that_succeeds_leaves_one_model_and_its_artifacts(
    database: Database, settings: Settings, make_job: MakeJob, run: Run
) -> None:
    job_id = make_job("succeed")
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "succeeded", job.error
    assert job.result is not None and job.lease_until is None
    assert outcomes(database, job_id) == ["succeeded"]
    with database.session_scope(read_only=True) as session:
        model = session.get_one(Model, job.result["model_id"])
        artifacts = {a.path: a for a in session.scalars(select(Artifact).where(Artifact.job_id == job_id))}
    assert model.parent_model_id == job.model_id and model.job_id == job_id and model.state == "ready"
    assert [file["path"] for file in model.files] == ["config.json", "model.safetensors"]
    assert sorted(artifacts) == [
        "huggingface/config.json",
        "huggingface/model.safetensors",
        "manifest.json",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "report/report.html",
    ]
    assert artifacts["onnx/model_int8.onnx"].kind == "onnx_int8"
    assert artifacts["report/report.html"].media_type == "text/html; charset=utf-8"
    assert stored(settings, job_id) == sorted(a.key for a in artifacts.values())
    with open_storage(settings.storage).open(f"{model.prefix}/model.safetensors") as file:
        assert file.read() == WEIGHTS
    assert not list((settings.scratch / "jobs").iterdir())


@on_databases
def test_what_the_engine_reports_is_stored(database: Database, make_job: MakeJob, run: Run) -> None:
    job_id = make_job("succeed")
    run(job_id)
    job = read_job(database, job_id)
    assert job.warnings == [{"code": "INPUT_TRUNCATED", "message": "3 rows were cut."}]
    with database.session_scope(read_only=True) as session:
        points = session.execute(select(MetricPoint.name, MetricPoint.step, MetricPoint.value)).all()
        events = list(session.scalars(select(Event.type).order_by(Event.id)))
    assert [tuple(point) for point in points] == [("finetuning/loss", 1, 0.25), ("finetuning/loss", 2, None)]
    assert events == ["job.queued", "job.started", "pruning.cut", "job.succeeded"]


def test_a_missed_goal_is_rejected_and_keeps_the_model(database: Database, make_job: MakeJob, run: Run) -> None:
    job_id = make_job("reject")
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "rejected" and job.result is not None
    with database.session_scope(read_only=True) as session:
        assert session.get_one(Model, job.result["model_id"]).state == "ready"


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("say_why", "GPU_OUT_OF_MEMORY"),
        ("exit", "ENGINE_ERROR"),
        ("no_result", "ENGINE_ERROR"),
        ("bad_result", "ENGINE_ERROR"),
        ("link", "ENGINE_ERROR"),
    ],
)
def test_a_failed_engine_fails_the_job_and_leaves_nothing(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, behaviour: str, code: str
) -> None:
    job_id = make_job(behaviour)
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "failed" and job.error is not None and job.error["code"] == code
    assert stored(settings, job_id) == []
    assert not list((settings.scratch / "jobs").iterdir())


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(signal.SIGKILL, "engine_killed"), (signal.SIGSEGV, "engine_crashed"), (signal.SIGTERM, "engine_stopped")],
)
def test_an_engine_that_dies_three_times_is_a_crash_loop(
    database: Database, make_job: MakeJob, run: Run, number: int, outcome: str
) -> None:
    job_id = make_job("die", signal=str(int(number)))
    for attempt in range(1, 4):
        run(job_id)
        job = read_job(database, job_id)
        assert job.attempts == attempt
        with database.session_scope() as session:
            session.get_one(Job, job_id).not_before = None
    assert job.status == "failed" and job.error is not None and job.error["code"] == "CRASH_LOOP"
    assert outcomes(database, job_id) == [outcome, outcome, "failed"]


def test_a_ring_for_a_job_that_runs_does_nothing(
    database: Database, make_job: MakeJob, run: Run, run_aside: Aside, tmp_path: Path
) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    job_id = make_job("wait", started=str(started), go=str(go))
    thread = run_aside(job_id)
    wait_for(started.exists)
    for _ in range(10):
        run(job_id)
    go.touch()
    thread.join()
    run(job_id)
    assert outcomes(database, job_id) == ["succeeded"]


def test_a_ring_works_off_all_that_is_queued(database: Database, make_job: MakeJob, run: Run) -> None:
    queued = [make_job("succeed") for _ in range(3)]
    run(queued[2])
    assert [read_job(database, job_id).status for job_id in queued] == ["succeeded"] * 3


@on_databases
def test_two_workers_of_one_name_share_the_jobs(database: Database, make_job: MakeJob, run_aside: Aside) -> None:
    queued = [make_job("succeed") for _ in range(12)]
    for thread in [run_aside(queued[0]) for _ in range(2)]:
        thread.join()
    with database.session_scope(read_only=True) as session:
        attempts = session.execute(select(Attempt.job_id, Attempt.outcome)).all()
        assert {job.status for job in session.scalars(select(Job))} == {"succeeded"}
    assert sorted(attempts) == sorted((job_id, "succeeded") for job_id in queued)


def test_a_worker_that_leaves_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = drain_file(tmp_path, 1)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-container")
    assert drain_file(tmp_path, 1) != mine


def test_a_job_whose_order_cannot_be_read_holds_up_no_other(
    database: Database, make_job: MakeJob, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = make_job("succeed"), make_job("succeed")
    real = staging.read_order

    def read_order(session: Session, held: Claim) -> staging.Order:
        if held.job_id == broken:
            raise KeyError("facts")
        return real(session, held)

    monkeypatch.setattr(supervisor, "read_order", read_order)
    run(broken)
    assert [read_job(database, job_id).status for job_id in (broken, sound)] == ["queued", "succeeded"]
    assert outcomes(database, broken) == ["worker_error"]


def test_a_database_that_goes_before_the_order_is_read_costs_no_attempt(
    database: Database, make_job: MakeJob, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, away = staging.read_order, [1, 2]

    def read_order(session: Session, held: Claim) -> staging.Order:
        if away:
            away.pop()
            raise OperationalError("", {}, Exception())
        return real(session, held)

    monkeypatch.setattr(supervisor, "read_order", read_order)
    run(job_id := make_job("succeed"))
    assert outcomes(database, job_id) == ["succeeded"]


@pytest.mark.parametrize("behaviour", ["hang", "ignore_sigterm", "hang_with_child"])
def test_cancelling_stops_the_engine_and_its_children(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path, behaviour: str
) -> None:
    started, child = tmp_path / "started", tmp_path / "child"
    job_id = make_job(behaviour, started=str(started), child=str(child))
    thread = run_aside(job_id)
    wait_for(lambda: started.exists() and started.read_text() != "")
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, job_id))
    thread.join()
    assert read_job(database, job_id).status == "cancelled"
    assert gone(int(started.read_text()))
    if behaviour == "hang_with_child":
        wait_for(lambda: gone(int(child.read_text())))
    assert stored(settings, job_id) == []


def test_a_timeout_fails_the_job(database: Database, make_job: MakeJob, run: Run, tmp_path: Path) -> None:
    job_id = make_job("hang", timeout=1, started=str(tmp_path / "started"))
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "failed" and job.error is not None
    assert job.error["code"] == "TIMEOUT" and job.error["blame"] == "user" and not job.error["retryable"]


def test_a_draining_worker_gives_the_job_back_uncounted(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = make_job("hang", started=str(started))
    thread = run_aside(job_id)
    wait_for(started.exists)
    drain_file(settings.scratch, os.getpid()).touch()
    thread.join()
    job = read_job(database, job_id)
    assert (job.status, job.attempts, job.worker) == ("queued", 0, None)
    assert outcomes(database, job_id) == ["returned"]


@pytest.mark.parametrize("asked", ["pause", "drain"])
def test_what_an_engine_says_as_it_leaves_is_kept(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path, asked: str
) -> None:
    started = tmp_path / "started"
    job_id = make_job("train", started=str(started), steps="100000")
    thread = run_aside(job_id)
    wait_for(started.exists)
    if asked == "drain":
        drain_file(settings.scratch, os.getpid()).touch()
    else:
        with database.session_scope() as session:
            pause(session, session.get_one(Job, job_id))
    thread.join()
    assert read_job(database, job_id).status == {"pause": "paused", "drain": "queued"}[asked]
    with database.session_scope(read_only=True) as session:
        assert list(session.scalars(select(Event.type).where(Event.type == "engine.left"))) == ["engine.left"]


def test_a_worker_that_lost_its_lease_changes_nothing(
    database: Database, settings: Settings, make_job: MakeJob, run_aside: Aside, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = make_job("hang", started=str(started))
    thread = run_aside(job_id)
    wait_for(started.exists)
    with database.session_scope() as session:  # as after a pause longer than the lease
        session.get_one(Job, job_id).lease_until = session.scalar(select(db_epoch())) - 1  # type: ignore[operator]
        jobs.reconcile(session, settings.max_attempts)
        held = jobs.claim(session, job_id, "another", 600)
    assert held is not None
    thread.join()
    job = read_job(database, job_id)
    assert (job.status, job.worker, job.token) == ("running", "another", 2)
    assert outcomes(database, job_id) == ["worker_lost", None]
    assert gone(int(started.read_text()))


def test_the_job_survives_a_database_that_is_away(
    database: Database,
    make_job: MakeJob,
    run_aside: Aside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    job_id = make_job("wait", started=str(started), go=str(go))
    away = tmp_path / "away"
    failed = []
    real = jobs.beat

    def beat(*arguments: object, **visible: object) -> str | None:
        if away.exists():
            failed.append(1)
            raise OperationalError("", {}, Exception())
        return real(*arguments, **visible)  # type: ignore[arg-type]

    away.touch()
    monkeypatch.setattr(jobs, "beat", beat)
    thread = run_aside(job_id)
    wait_for(lambda: started.exists() and len(failed) >= 2)
    go.touch()
    time.sleep(0.5)
    away.unlink()
    thread.join()
    assert read_job(database, job_id).status == "succeeded"
    with database.session_scope(read_only=True) as session:
        assert list(session.scalars(select(Event.type).where(Event.type == "pruning.cut"))) == ["pruning.cut"]


def test_a_commit_whose_answer_is_lost_is_not_undone(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = jobs.finish
    lost: list[int] = []

    def finish(session, *arguments):  # type: ignore[no-untyped-def]
        won = real(session, *arguments)
        if not lost:
            lost.append(1)
            session.commit()
            raise OperationalError("", {}, Exception())
        return won

    monkeypatch.setattr(jobs, "finish", finish)
    job_id = make_job("succeed")
    run(job_id)
    assert read_job(database, job_id).status == "succeeded"
    assert len(stored(settings, job_id)) == 6


def test_a_finish_that_loses_to_a_cancel_leaves_nothing(
    database: Database, settings: Settings, make_job: MakeJob, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publishing.publish

    def publish(*arguments, **named):  # type: ignore[no-untyped-def]
        publication = real(*arguments, **named)
        with database.session_scope() as session:
            jobs.cancel(session, session.get_one(Job, job_id))
        return publication

    monkeypatch.setattr(supervisor, "publish", publish)
    job_id = make_job("succeed")
    run(job_id)
    job = read_job(database, job_id)
    assert job.status == "cancelled" and job.result is None
    assert stored(settings, job_id) == []
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(Model).where(Model.job_id == job_id)) is None


def test_files_of_an_attempt_that_died_while_publishing_are_removed(
    settings: Settings, make_job: MakeJob, run: Run, tmp_path: Path, database: Database
) -> None:
    job_id = make_job("succeed")
    half = tmp_path / "half"
    half.write_bytes(b"half")
    open_storage(settings.storage).put(f"artifacts/{job_id}/1/huggingface/config.json", half)
    with database.session_scope() as session:
        session.get_one(Job, job_id).token = 1
    run(job_id)
    assert {key.split("/")[2] for key in stored(settings, job_id)} == {"2"}


def test_a_stored_file_that_has_changed_is_not_used(
    database: Database, settings: Settings, make_job: MakeJob, run: Run
) -> None:
    job_id = make_job("succeed")
    with database.session_scope() as session:
        model = session.get_one(Model, session.get_one(Job, job_id).model_id)
        path = Path(settings.storage.removeprefix("file://"), model.prefix, "model.safetensors")
    path.write_bytes(WEIGHTS.replace(b"w", b"W", 1))
    run(job_id)
    job = read_job(database, job_id)
    assert job.error is not None and job.error["code"] == "INPUT_CORRUPT"


def test_the_engine_sees_nothing_of_the_workers_environment(
    make_job: MakeJob, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_DATABASE_URL", "postgresql://user:secret@host/database")
    started = tmp_path / "started"
    run(make_job("environment", started=str(started)))
    seen = json.loads(started.read_text())
    assert seen["HF_HUB_OFFLINE"] == "1" and seen["HOME"].endswith("/scratch")
    assert not [name for name in seen if name.startswith("SECATEUR_") or "secret" in seen[name]]
