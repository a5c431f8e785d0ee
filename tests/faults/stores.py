"""A service's database and folders, copied for every fault, and what must hold of them afterwards."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import SecretStr
from sqlalchemy import select

from service import checkpoints, jobs
from service.config import Settings
from service.db import Database
from service.intake import orphans, scratch, uploads
from service.storage import open_storage
from service.tables import Artifact, Dataset, Job, Model
from workers import staging, supervisor

AT_ONCE = -60.0
"""Seconds of grace that let a sweep take what has just been made."""

COPYING = ("/bin/sh", "-c", 'cp -r "$0"/. "$1"')
"""An engine that has nothing to do but to leave what was prepared; its folder comes next."""


Work = Callable[[Settings, Path], Callable[[], object]]
"""Makes an attempt ready, whose engine leaves what lies prepared."""


@contextmanager
def copied(settings: Settings, folder: Path) -> Iterator[Settings]:
    """The same state in another folder, below which everything lies, for the length of the block."""
    shutil.copytree(settings.data_dir, folder)
    file = settings.database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(folder / "secateur.db")) as target:
        source.backup(target)
    yield settings.model_copy(
        update={"data_dir": folder, "database_url": SecretStr(f"sqlite:///{folder / 'secateur.db'}")}
    )
    shutil.rmtree(folder)


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database of a state."""
    database = Database(settings.database)
    try:
        yield database
    finally:
        database.dispose()


def prepare_result(folder: Path, result: dict[str, Any]) -> None:
    """What an engine leaves."""
    for name, content in (("huggingface/config.json", b"{}"), ("huggingface/model.safetensors", bytes(70_000))):
        file = folder / "out" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "out/report").mkdir()
    (folder / "out/report/report.html").write_text("<p>report</p>")
    (folder / "result.json").write_text(json.dumps(result))


def attempt(settings: Settings, prepared: Path) -> Callable[[], None]:
    """An attempt at every job that is due."""
    command = (*COPYING, str(prepared))
    return lambda: supervisor.run(settings, engine_command=command, worker_pid=os.getpid())


def attempt_over_two_disks(settings: Settings, prepared: Path) -> Callable[[], None]:
    """The same, with scratch and storage on two file systems."""

    def ready() -> None:
        with two_disks():
            attempt(settings, prepared)()

    return ready


@contextmanager
def two_disks() -> Iterator[None]:
    """Nothing can be renamed from scratch into the storage."""
    replace = os.replace

    def across(source: Any, target: Any, **folders: Any) -> None:
        if "/scratch/" in os.fspath(source) and "/storage/" in os.fspath(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        replace(source, target, **folders)

    with patch.object(os, "replace", across):
        yield


def lose_worker(database: Database) -> None:
    """As when the lease of a killed worker has run out, and every pause is over."""
    with database.session_scope() as session:
        for job in session.scalars(select(Job)):
            job.lease_until = None if job.lease_until is None else 0.0
            job.not_before = None
    with database.session_scope() as session:
        jobs.reconcile(session, 3)


def sweep(database: Database, settings: Settings) -> None:
    """All that the service does at its start and from time to time."""
    storage = open_storage(settings.storage)
    staging.sweep(settings.scratch)
    scratch.sweep(settings.scratch)
    uploads.sweep(database, storage, settings.scratch, AT_ONCE)
    for remove in (orphans.sweep, orphans.sweep_artifacts, checkpoints.sweep):
        remove(database, storage, AT_ONCE)


def promised(database: Database) -> dict[str, tuple[int, str]]:
    """Size and digest of every file that a row tells of, by its key."""
    files: dict[str, tuple[int, str]] = {}
    with database.session_scope(read_only=True) as session:
        for artifact in session.scalars(select(Artifact)):
            files[artifact.key] = (artifact.size, artifact.sha256)
        for model in session.scalars(select(Model).where(Model.state == "ready")):
            files |= {f"{model.prefix}/{file['path']}": (file["size"], file["sha256"]) for file in model.files}
        for dataset in session.scalars(select(Dataset)):
            for split, facts in dataset.splits.items():
                files[f"{dataset.prefix}/{split}.jsonl"] = (facts["size"], facts["sha256"])
        for job in session.scalars(select(Job)):
            for saved in checkpoints.newest_first(job.checkpoint):
                files |= {f"{saved['key']}/{file['path']}": (file["size"], file["sha256"]) for file in saved["files"]}
    return files


def stored(settings: Settings) -> dict[str, tuple[int, str]]:
    """Size and digest of every file below the storage, unfinished ones too."""
    root = Path(settings.storage.removeprefix("file://"))
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): _facts(path) for path in files}


def _facts(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def assert_whole(database: Database, settings: Settings) -> None:
    """Whatever a row tells of is there as it says."""
    kept = stored(settings)
    for key, facts in promised(database).items():
        assert kept.get(key) == facts, key


def assert_swept(database: Database, settings: Settings) -> None:
    """After a sweep nothing is left but what rows tell of."""
    sweep(database, settings)
    assert stored(settings) == promised(database)
    left = [path for folder in ("jobs", "uploads", "resumable") for path in (settings.scratch / folder).glob("*")]
    assert left == []
