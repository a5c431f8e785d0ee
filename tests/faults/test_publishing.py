"""A worker that dies or whose disk fails between any two calls of an attempt leaves all of a result, or none of it."""

import errno
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from service.config import Settings
from service.db import Database
from service.tables import Artifact, Attempt, Job, Model
from tests.faults import stores
from tests.faults.calls import Call, at_each, counted, fails, killed_at, refused, until_through
from tests.workers.conftest import MakeJob, make_job
from tests.workers.test_publishing import RESULT

__all__ = ["make_job"]

FILES = {"huggingface/config.json", "huggingface/model.safetensors", "manifest.json", "report/report.html"}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """What the engine leaves in its folder."""
    stores.prepare_result(tmp_path / "prepared", RESULT)
    return tmp_path / "prepared"


@pytest.fixture
def queued(settings: Settings, make_job: MakeJob) -> Settings:
    """A service with one queued job."""
    make_job("succeed")
    return settings


def ends(database: Database) -> tuple[str, dict[str, object] | None, set[str], int]:
    """The job's status and error, paths of its artifacts, how many models it made."""
    with database.session_scope(read_only=True) as session:
        job = session.scalars(select(Job)).one()
        paths = set(session.scalars(select(Artifact.path)))
        return job.status, job.error, paths, len(list(session.scalars(select(Model).where(Model.job_id == job.id))))


def given(settings: Settings) -> str:
    """Where the model lies that was there before."""
    (model,) = (settings.data_dir / "storage/models").iterdir()
    return str(model / "model.safetensors")


def outcomes(database: Database) -> list[str | None]:
    """How the attempts ended."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Attempt.outcome).order_by(Attempt.token)))


def assert_all_or_nothing(database: Database, settings: Settings) -> bool:
    """Whether the result is there: then all of it, whole."""
    status, _, paths, models = ends(database)
    assert (paths, models) == ((FILES, 1) if status == "succeeded" else (set(), 0))
    stores.assert_whole(database, settings)
    return status == "succeeded"


def assert_comes_through(database: Database, settings: Settings, prepared: Path) -> None:
    """The next attempt succeeds, and nothing is left of the one before."""
    stores.lose_worker(database)
    stores.attempt(settings, prepared)()
    assert assert_all_or_nothing(database, settings), ends(database)
    stores.assert_swept(database, settings)


def runs(settings: Settings, prepared: Path) -> list[Call]:
    """The calls of an attempt that nothing disturbs."""
    with counted(settings.data_dir) as calls:
        stores.attempt(settings, prepared)()
    return calls.made


def kill(attempt: stores.Work, queued: Settings, prepared: Path, folder: Path, number: int) -> tuple[bool, bool]:
    """Whether the attempt was killed at a call, and whether its result is there."""
    with stores.copied(queued, folder / f"killed-{number}") as settings:
        killed = killed_at(number, settings.data_dir, attempt, settings, prepared)
        with stores.opened(settings) as database:
            published = assert_all_or_nothing(database, settings)
            assert_comes_through(database, settings, prepared)
    return killed, published


def test_a_kill_at_any_call_leaves_all_or_nothing(queued: Settings, prepared: Path, tmp_path: Path) -> None:
    published = until_through(partial(kill, stores.attempt, queued, prepared, tmp_path))
    assert len(published) > 50
    assert published == sorted(published) and not published[len(published) // 2] and published[-2]


def kill_over_two_disks(queued: Settings, prepared: Path, folder: Path, call: Call) -> bool:
    """Whether the attempt was killed at a call."""
    return kill(stores.attempt_over_two_disks, queued, prepared, folder, call.number)[0]


def test_so_does_a_kill_while_files_are_copied_from_another_disk(
    queued: Settings, prepared: Path, tmp_path: Path
) -> None:
    with stores.copied(queued, tmp_path / "whole") as settings, stores.two_disks():
        calls = runs(settings, prepared)
    first = next(call.number for call in calls if call.name == "open" and "/storage/artifacts/" in call.path)
    copying = calls[first - 1 : first + 9]
    assert [call.name for call in copying[:6]] == ["open", "sendfile", "sendfile", "fsync", "replace", "unlink"]
    assert all(at_each(copying, partial(kill_over_two_disks, queued, prepared, tmp_path)))


@pytest.mark.parametrize("disks", [1, 2])
def test_what_rows_promise_is_on_the_disk_before_them(queued: Settings, prepared: Path, disks: int) -> None:
    with stores.two_disks() if disks == 2 else nullcontext():
        calls = runs(queued, prepared)
    unflushed: set[str] = set()
    in_place: set[str] = set()
    for call in calls:
        match call.name:
            case "mkdir" | "replace" if "/storage/" in call.path:
                unflushed.add(str(Path(call.path).parent))
                in_place.add(call.path)
            case "open" | "write" | "sendfile" if "/storage/" in call.path:
                unflushed.add(call.path)
            case "fsync":
                unflushed.discard(call.path)
            case "commit":
                assert unflushed == set()
    with stores.opened(queued) as database:
        assert {f"{queued.data_dir}/storage/{key}" for key in stores.promised(database)} - in_place <= {given(queued)}
    flushed = {Path(call.path).name for call in calls if call.name == "fsync"}
    assert flushed >= {"config.json", "model.safetensors", "report.html"} or disks == 2


def fail(queued: Settings, prepared: Path, folder: Path, code: int, outcome: str, call: Call) -> None:
    """Let the disk fail at a call of an attempt."""
    with stores.copied(queued, folder / f"{code}-{call.number}") as settings:
        with counted(settings.data_dir, fails(call, code)) as made:
            stores.attempt(settings, prepared)()
        failed = made.made[call.number - 1]  # not always what it was in the run that was counted: threads take turns
        with stores.opened(settings) as database:
            if not assert_all_or_nothing(database, settings):
                assert outcomes(database) == [outcome], failed
            else:
                assert failed.name in ("unlink", "rmdir"), failed
            assert_comes_through(database, settings, prepared)
    if failed.name == "fsync" and "/scratch/" in failed.path:  # flushed again it would seem to be kept
        assert [one.path for one in made.made if one.name == "fsync"].count(failed.path) == 1


@pytest.mark.parametrize(
    ("code", "outcome"), [(errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EIO, "storage_error")]
)
def test_a_disk_that_fails_at_any_call_fails_the_attempt_and_no_more(
    queued: Settings, prepared: Path, tmp_path: Path, code: int, outcome: str
) -> None:
    with stores.copied(queued, tmp_path / "whole") as settings:
        calls = refused(runs(settings, prepared), code)
    assert len(calls) > 25
    # A quota refuses what a full disk does: few places tell that it has the same meaning.
    chosen = calls[1:] if code != errno.EDQUOT else calls[5::8]
    at_each(chosen, partial(fail, queued, prepared, tmp_path, code, outcome))
