"""The state machine of a job, on both databases."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from service import jobs
from service.db import Database
from service.errors import Conflict
from service.jobs import Claim
from service.states import FINAL, FOLLOWS
from service.tables import Artifact, Attempt, Event, Job, Model
from tests.databases import on_databases
from tests.service.samples import RESULT, a_model, an_artifact, submitted

LEASE = 60.0
RETRYABLE = {"code": "ENGINE_KILLED", "message": "m", "blame": "transient", "retryable": True}
FATAL = {"code": "BAD_DATA", "message": "m", "blame": "user", "retryable": False}


def _do(database: Database, step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with database.session_scope() as session:
        return step(session, *arguments, **named)


def _job(database: Database, job_id: str) -> Job:
    with database.session_scope(read_only=True) as session:
        return session.get_one(Job, job_id)


def _events(database: Database, job_id: str) -> list[str]:
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.id)))


def _claim(database: Database, job_id: str, worker: str = "w1", lease: float = LEASE) -> Claim:
    claim = _do(database, jobs.claim, job_id, worker, lease)
    assert isinstance(claim, Claim)
    return claim


def _cancel(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, job_id))


def _finish(database: Database, claim: Claim, status: str = "succeeded") -> bool:
    job = _job(database, claim.job_id)
    model, artifact = a_model(job_id=job.id), an_artifact(job, "onnx/model.onnx", b"x", "0" * 64, "k")
    return bool(_do(database, jobs.finish, claim, status, RESULT, model, [artifact]))


def _race(*steps: Callable[[], Any]) -> list[Any]:
    start, results = threading.Barrier(len(steps)), [None] * len(steps)

    def run(index: int) -> None:
        start.wait()
        results[index] = steps[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@on_databases
def test_one_of_many_workers_claims(database: Database) -> None:
    job = submitted(database)
    claims = _race(*(functools.partial(_do, database, jobs.claim, job.id, f"w{n}", LEASE) for n in range(4)))
    won = [claim for claim in claims if claim is not None]
    assert len(won) == 1
    stored = _job(database, job.id)
    assert (stored.status, stored.attempts, stored.token) == ("running", 1, 1)
    assert stored.version > job.version
    assert _events(database, job.id) == ["job.queued", "job.started"]


@on_databases
def test_a_finished_job_has_its_result_model_and_artifacts(database: Database) -> None:
    claim = _claim(database, submitted(database).id)
    assert _finish(database, claim)
    job = _job(database, claim.job_id)
    assert (job.status, job.phase, job.lease_until, job.progress["fraction"]) == ("succeeded", None, None, 1.0)
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Artifact)) == 1
        assert session.scalar(select(Model.id).where(Model.job_id == job.id))
        assert session.scalars(select(Attempt)).one().outcome == "succeeded"
    assert not _finish(database, claim)
    assert _do(database, jobs.beat, claim, LEASE) is None


@on_databases
def test_a_worker_that_lost_its_lease_can_write_no_more(database: Database) -> None:
    old = _claim(database, submitted(database).id, lease=-1)
    assert _do(database, jobs.reconcile, 3) == [old.job_id]
    assert _do(database, jobs.beat, old, LEASE, phase="pruning") is None
    new = _claim(database, old.job_id, "w2")
    assert (new.token, new.attempt) == (2, 2)
    assert not _finish(database, old)
    assert not _do(database, jobs.give_back, old)
    assert not _do(database, jobs.fail, old, FATAL, 3)
    assert not _do(database, jobs.confirm_cancelled, old)
    assert _job(database, old.job_id).status == "running"
    assert _finish(database, new)
    with database.session_scope(read_only=True) as session:
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.token)).all()
    assert outcomes == ["worker_lost", "succeeded"]


@on_databases
def test_a_beat_renews_the_lease_and_tells_of_a_cancel(database: Database) -> None:
    claim = _claim(database, submitted(database).id, lease=1)
    before = _job(database, claim.job_id)
    assert _do(database, jobs.beat, claim, LEASE) == "running"
    silent = _job(database, claim.job_id)
    assert silent.version == before.version
    assert silent.lease_until is not None and before.lease_until is not None
    assert silent.lease_until > before.lease_until + 30
    progress = {"fraction": 0.5, "step": 1, "total_steps": 2, "seconds_remaining": 1.0}
    assert _do(database, jobs.beat, claim, LEASE, phase="pruning", progress=progress) == "running"
    shown = _job(database, claim.job_id)
    assert (shown.phase, shown.progress, shown.version) == ("pruning", progress, before.version + 1)
    _cancel(database, claim.job_id)
    assert _do(database, jobs.beat, claim, LEASE) == "cancelling"


@on_databases
def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    job = submitted(database)
    for _ in range(2):
        _cancel(database, job.id)
        assert _job(database, job.id).status == "cancelled"
    assert _do(database, jobs.claim, job.id, "w1", LEASE) is None
    assert _events(database, job.id) == ["job.queued", "job.cancelled"]


@on_databases
def test_a_running_job_is_cancelled_by_its_worker(database: Database) -> None:
    claim = _claim(database, submitted(database).id)
    for _ in range(2):
        _cancel(database, claim.job_id)
        assert _job(database, claim.job_id).status == "cancelling"
    assert not _finish(database, claim)
    assert _do(database, jobs.confirm_cancelled, claim)
    assert _job(database, claim.job_id).status == "cancelled"
    _cancel(database, claim.job_id)
    assert _events(database, claim.job_id)[-2:] == ["job.cancelling", "job.cancelled"]
    with database.session_scope(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Artifact)) == 0


@on_databases
@pytest.mark.parametrize("status", ["succeeded", "rejected"])
def test_a_finished_job_cannot_be_cancelled(database: Database, status: str) -> None:
    claim = _claim(database, submitted(database).id)
    assert _finish(database, claim, status)
    with pytest.raises(Conflict) as caught:
        _cancel(database, claim.job_id)
    assert caught.value.extra == {"job_status": status}


@on_databases
def test_cancel_and_finish_at_once_leave_one_outcome(database: Database) -> None:
    for _ in range(5):
        claim = _claim(database, submitted(database).id)
        refused: list[Conflict] = []

        def cancel(job_id: str = claim.job_id, refused: list[Conflict] = refused) -> None:
            try:
                _cancel(database, job_id)
            except Conflict as conflict:
                refused.append(conflict)

        _, finished = _race(cancel, functools.partial(_finish, database, claim))
        status = _job(database, claim.job_id).status
        assert status == ("succeeded" if finished else "cancelling")
        assert bool(refused) == finished
        with database.session_scope(read_only=True) as session:
            made = session.scalar(select(func.count()).where(Artifact.job_id == claim.job_id))
        assert made == (1 if finished else 0)


@on_databases
def test_an_orderly_hand_back_does_not_count(database: Database) -> None:
    claim = _claim(database, submitted(database).id)
    assert _do(database, jobs.give_back, claim)
    job = _job(database, claim.job_id)
    assert (job.status, job.attempts, job.token, job.worker, job.not_before) == ("queued", 0, 1, None, None)
    again = _claim(database, claim.job_id)
    assert (again.attempt, again.token) == (1, 2)
    assert not _do(database, jobs.give_back, claim)
    _cancel(database, claim.job_id)
    assert not _do(database, jobs.give_back, again)


@on_databases
def test_a_passing_fault_is_tried_again_until_attempts_run_out(database: Database) -> None:
    job = submitted(database)
    for attempt in (1, 2):
        claim = _claim(database, job.id)
        assert claim.attempt == attempt
        assert _do(database, jobs.fail, claim, RETRYABLE, 3)
        assert _do(database, jobs.claim, job.id, "w", LEASE) is None, "not due yet"
        assert _do(database, jobs.reconcile, 3) == []
        with database.session_scope() as session:
            session.get_one(Job, job.id).not_before = 0.0
    assert not _do(database, jobs.fail, _claim(database, job.id), RETRYABLE, 3)
    failed = _job(database, job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error["code"], failed.error["retryable"]) == ("CRASH_LOOP", False)


@pytest.mark.parametrize("code", ["NO_SPACE", "STORAGE_ERROR"])
def test_a_disk_that_stays_full_or_broken_is_no_crash_loop(database: Database, code: str) -> None:
    job = submitted(database)
    error = RETRYABLE | {"code": code}
    assert _do(database, jobs.fail, _claim(database, job.id), error, 2)
    with database.session_scope() as session:
        session.get_one(Job, job.id).not_before = 0.0
    assert not _do(database, jobs.fail, _claim(database, job.id), error, 2)
    assert (_job(database, job.id).status, _job(database, job.id).error) == ("failed", error)


@on_databases
def test_a_lasting_fault_fails_at_once(database: Database) -> None:
    claim = _claim(database, submitted(database).id)
    assert not _do(database, jobs.fail, claim, FATAL, 3)
    job = _job(database, claim.job_id)
    assert (job.status, job.error) == ("failed", FATAL)
    assert _events(database, job.id)[-1] == "job.failed"


@on_databases
def test_a_fault_while_cancelling_ends_as_cancelled(database: Database) -> None:
    claim = _claim(database, submitted(database).id)
    _cancel(database, claim.job_id)
    assert not _do(database, jobs.fail, claim, FATAL, 3)
    assert _job(database, claim.job_id).status == "cancelled"


@on_databases
def test_reconcile_ends_what_is_hopeless_and_lists_what_is_due(database: Database) -> None:
    lost = [_claim(database, submitted(database).id, lease=-1) for _ in range(2)]
    _cancel(database, lost[1].job_id)
    alive = _claim(database, submitted(database).id)
    low, high = submitted(database), submitted(database, priority=5)
    assert _do(database, jobs.reconcile, 1) == [high.id, low.id]
    states = [_job(database, claim.job_id).status for claim in (*lost, alive)]
    assert states == ["failed", "cancelled", "running"]
    error = _job(database, lost[0].job_id).error
    assert error is not None and error["code"] == "CRASH_LOOP"


@on_databases
def test_two_reconcilers_free_a_job_once(database: Database) -> None:
    claim = _claim(database, submitted(database).id, lease=-1)
    _race(*(lambda: _do(database, jobs.reconcile, 3) for _ in range(3)))
    assert _events(database, claim.job_id).count("job.requeued") == 1
    assert _job(database, claim.job_id).attempts == 1


def test_every_state_but_the_final_ones_leads_on() -> None:
    assert FOLLOWS.keys() >= FINAL and all(FOLLOWS[status] <= {"queued"} for status in FINAL)
    assert all(following - {"queued"} for status, following in FOLLOWS.items() if status not in FINAL)
    assert {status for following in FOLLOWS.values() for status in following} <= FOLLOWS.keys()
    assert all(jobs.is_final(status) == (status in FINAL) for status in FOLLOWS)
