"""A worker that dies or whose disk fails while it stores a checkpoint leaves all that is noted whole, and no more."""

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service import jobs
from service.checkpoints import newest_first
from service.config import Settings
from service.db import Database
from service.jobs import Claim
from service.storage import open_storage
from service.tables import Job
from tests.faults import stores
from tests.faults.calls import Call, at_each, counted, fails, killed_at, refused, until_through
from tests.faults.test_publishing import prepared, queued
from tests.workers.conftest import make_job
from workers.checkpoints import FOLDER, Keeper, bring_back
from workers.relay import CheckpointLine
from workers.staging import Order

__all__ = ["make_job", "prepared", "queued"]

STEPS = (10, 20, 30)


def storing(settings: Settings, steps: tuple[int, ...] = STEPS) -> Callable[[], None]:
    """A worker that has claimed the job, and whose engine saves at these steps."""
    database = Database(settings.database)
    with database.session_scope() as session:
        held = jobs.claim_next(session, "w", 60.0)
    assert held is not None
    folder = settings.scratch / "engine"
    for step in steps:
        saved = folder / FOLDER / str(step)
        saved.mkdir(parents=True)
        (saved / "weights.safetensors").write_bytes(bytes(10_000) + str(step).encode())
        (saved / "checkpoint.json").write_text(json.dumps({"step": step}))

    def ready() -> None:
        for step in steps:
            store(settings, database, folder, held, step)
        database.dispose()

    return ready


def store(settings: Settings, database: Database, folder: Path, held: Claim, step: int) -> None:
    """Store one checkpoint and wait for it."""

    def note(checkpoint: dict[str, Any]) -> bool:
        with database.session_scope() as session:
            return jobs.keep_checkpoint(session, held, checkpoint)

    order = Order("job", "mdl", {}, {"parameters": 2}, (), checkpoint=noted(database))
    with Keeper(open_storage(settings.storage), folder, held, order, note) as keeper:
        keeper.offer(CheckpointLine(type="checkpoint", name=str(step), step=step))


def noted(database: Database) -> dict[str, Any] | None:
    """The job's checkpoint."""
    with database.session_scope(read_only=True) as session:
        return session.scalars(select(Job)).one().checkpoint


def steps_of(database: Database) -> list[int]:
    """Steps of what is noted, newest first."""
    return [saved["step"] for saved in newest_first(noted(database))]


def assert_goes_on(database: Database, settings: Settings) -> None:
    """Only what is noted is left, and the newest can be had."""
    stores.lose_worker(database)
    stores.sweep(database, settings)
    assert stores.stored(settings) == stores.promised(database)
    folder = settings.scratch / "next"
    (folder / "in").mkdir(parents=True)
    assert bring_back(open_storage(settings.storage), folder, noted(database), lambda: None) == noted(database)


def assert_ends(database: Database, settings: Settings, prepared: Path) -> None:
    """The next attempt succeeds and leaves no checkpoint."""
    stores.attempt(settings, prepared)()
    assert noted(database) is None
    assert stores.stored(settings) == stores.promised(database)


def kill(queued: Settings, prepared: Path, folder: Path, number: int) -> tuple[bool, list[int]]:
    """Whether the worker was killed at a call, and the steps of what was noted then."""
    with stores.copied(queued, folder / f"killed-{number}") as settings:
        killed = killed_at(number, settings.data_dir, storing, settings)
        with stores.opened(settings) as database:
            stores.assert_whole(database, settings)
            steps = steps_of(database)
            assert_goes_on(database, settings)
            assert_ends(database, settings, prepared)
    return killed, steps


def test_a_kill_at_any_call_leaves_what_is_noted_whole(queued: Settings, prepared: Path, tmp_path: Path) -> None:
    seen = until_through(partial(kill, queued, prepared, tmp_path))
    assert len(seen) > 40
    assert [steps for index, steps in enumerate(seen) if steps not in seen[:index]] == [[], [10], [20, 10], [30, 20]]


def fail(queued: Settings, prepared: Path, folder: Path, code: int, call: Call) -> list[int]:
    """Let the disk fail at a call; returns the steps of what is noted afterwards."""
    with stores.copied(queued, folder / f"{code}-{call.number}") as settings:
        ready = storing(settings)
        with counted(settings.data_dir, fails(call, code)):
            ready()
        with stores.opened(settings) as database:
            stores.assert_whole(database, settings)
            steps = steps_of(database)
            assert_goes_on(database, settings)
            assert_ends(database, settings, prepared)
    return steps


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call_costs_one_checkpoint(
    queued: Settings, prepared: Path, tmp_path: Path, code: int
) -> None:
    with stores.copied(queued, tmp_path / "whole") as settings:
        ready = storing(settings)
        with counted(settings.data_dir) as made:
            ready()
    calls = refused(made.made, code)
    assert len(calls) > 25
    last = max(call.number for call in calls if f"/{STEPS[1]}" in call.path)
    for call, steps in zip(calls, at_each(calls, partial(fail, queued, prepared, tmp_path, code)), strict=True):
        assert steps == sorted(steps, reverse=True) and len(steps) <= 2
        if code == errno.EIO:
            assert len(steps) == 2, "one fault costs one checkpoint"
            assert call.number > last or steps[0] == STEPS[-1], "what comes after it is stored"
