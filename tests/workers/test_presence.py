"""A worker's row."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from service.config import Settings
from service.db import Database, db_epoch
from service.tables import Worker
from service.worker_view import live_workers
from tests.databases import on_databases
from tests.processes import wait_for
from workers.presence import Presence, devices


def names(database: Database) -> list[str]:
    """The workers that are alive."""
    with database.session_scope(read_only=True) as session:
        return [worker.name for worker in live_workers(session)]


@on_databases
def test_a_worker_is_there_while_it_beats(database: Database, settings: Settings) -> None:
    worker = Presence("here", settings)
    worker.start()
    wait_for(lambda: names(database) == ["here"])
    with database.session_scope(read_only=True) as session:
        row = session.scalars(select(Worker)).one()
    assert row.sandbox == "process" and row.devices[0]["kind"] == "cpu"
    worker.beat()
    worker.stop()
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(Worker)) is None


def test_a_worker_whose_clock_is_wrong_says_so_once_and_lives_by_the_databases(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.clocks.time.time", lambda: time.time_ns() / 1e9 + 86400)
    worker = Presence("here", settings)
    worker.beat()
    worker.beat()
    assert caplog.messages == ["The clock of this process is 86400 s ahead of the database's."]
    assert names(database) == ["here"]
    worker.stop()


def test_a_worker_whose_database_is_away_says_so_in_a_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def beat(worker: Presence) -> None:
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr(Presence, "beat", beat)
    worker = Presence("here", settings)
    worker.start()
    wait_for(lambda: "is away" in caplog.text)
    worker.stop()
    assert not [record for record in caplog.records if record.exc_info]


def test_rows_of_the_long_gone_are_removed(database: Database, settings: Settings) -> None:
    with database.session_scope() as session:
        now = session.execute(select(db_epoch())).scalar_one()
        session.add(Worker(name="old", devices=[], sandbox="process", seen_until=now - 90_000))
        session.add(Worker(name="resting", devices=[], sandbox="process", seen_until=now - 10))
    worker = Presence("here", settings)
    worker.beat()
    with database.session_scope(read_only=True) as session:
        assert set(session.scalars(select(Worker.name))) == {"here", "resting"}
    worker.stop()


def test_the_cpu_is_described() -> None:
    cpu = devices()[0]
    assert cpu["threads"] == len(os.sched_getaffinity(0))
    assert cpu["memory"] > 1 << 28 and cpu["name"]


@pytest.mark.parametrize(
    ("answer", "count"), [('[{"kind": "cuda", "name": "H100", "memory": 1}]', 2), ("Traceback", 1)]
)
def test_gpus_are_asked_of_torch_in_its_own_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, count: int
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        assert "import json, torch" in command[-1]
        return subprocess.CompletedProcess(command, 0, answer.encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    assert len(devices()) == count
