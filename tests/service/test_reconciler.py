"""The reconciler: rings what the broker forgot, survives what fails, notes the use of keys."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from service import auth, idempotency, jobs
from service.auth import KeyUse
from service.broker import Broker
from service.config import Settings
from service.db import Database
from service.jobs import Claim
from service.reconciler import Reconciler
from service.tables import ApiKey, IdempotencyRecord, Job, utc_now
from tests.service.samples import submitted

LEASE = 3.0
"""That of `settings`, whose reconciler looks every second."""


@dataclass
class Clock:
    """The database's."""

    ahead: float = 0.0
    away: bool = False


@pytest.fixture
def clock(database: Database) -> Clock:
    """A clock to set: what the database says of the time is moved by `ahead` seconds."""
    clock = Clock()

    def move(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> tuple[str, Any]:
        if clock.away:
            raise OperationalError(statement, None, Exception("away"))
        return statement.replace("julianday('now')", f"(julianday('now') + {clock.ahead / 86400!r})"), parameters

    event.listen(database.engine, "before_cursor_execute", move, retval=True)
    return clock


def held(database: Database, lease: float = LEASE) -> Claim:
    """A job that a worker has."""
    job = submitted(database)
    with database.session_scope() as session:
        claim = jobs.claim(session, job.id, "w1", lease)
    assert claim is not None
    return claim


def lost(database: Database) -> str:
    """A job whose lease has run out."""
    return held(database, -1).job_id


def status_of(database: Database, job_id: str) -> str:
    """Its status."""
    with database.session_scope(read_only=True) as session:
        return session.get_one(Job, job_id).status


def kept_answers(database: Database) -> int:
    """Answers that can be replayed."""
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(IdempotencyRecord)) or 0


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    """The doorbell of `settings`."""
    broker = Broker(settings.broker)
    yield broker
    broker.close()


@pytest.fixture
def reconciler(settings: Settings, database: Database, broker: Broker) -> Reconciler:
    """A loop that has not started."""
    return Reconciler(settings, database, broker, KeyUse())


def test_a_silent_job_is_rung_once(reconciler: Reconciler, database: Database, broker: Broker) -> None:
    job = submitted(database)
    assert broker.waiting() == set()
    reconciler.turn()
    assert broker.waiting() == {job.id}
    rung: list[str] = []
    broker.ring = rung.append  # type: ignore[method-assign, assignment]
    reconciler.turn()
    assert rung == []


def test_of_a_long_queue_no_more_is_rung_for_than_wakes_every_worker(
    reconciler: Reconciler, database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.reconciler.MOST_RINGS", 3)
    queued = [submitted(database).id for _ in range(5)]
    broker.ring(queued[4])
    for _ in range(2):
        reconciler.turn()
        assert broker.waiting() == {queued[4], *queued[:2]}


def test_a_lost_job_is_queued_and_rung_once_its_worker_could_have_spoken(
    reconciler: Reconciler, database: Database, broker: Broker, clock: Clock
) -> None:
    job_id = lost(database)
    for ahead, status in ((0, "running"), (1, "running"), (2, "running"), (LEASE + 0.5, "queued")):
        clock.ahead = ahead
        reconciler.turn()
        assert status_of(database, job_id) == status, ahead
    assert broker.waiting() == {job_id}


def test_a_lease_that_ran_out_while_the_database_was_away_says_nothing(
    reconciler: Reconciler, database: Database, clock: Clock
) -> None:
    for clock.ahead in (0, 1, 2, 3, 4):
        reconciler.turn()
    job_id = lost(database)
    clock.away = True
    with pytest.raises(OperationalError):
        reconciler.turn()
    clock.away = False
    for clock.ahead, status in ((5, "running"), (6, "running"), (7, "running"), (8.5, "queued")):
        reconciler.turn()
        assert status_of(database, job_id) == status, clock.ahead


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_database_whose_clock_is_set_takes_no_job_from_a_worker_that_lives(
    reconciler: Reconciler, database: Database, clock: Clock, jump: float
) -> None:
    for clock.ahead in (0, 1, 2, 3, 4):
        reconciler.turn()
    living, dead = held(database), held(database)
    for second in (5, 6.1, 7.2, 8.3):
        assert status_of(database, dead.job_id) == "running"
        clock.ahead = jump + second
        reconciler.turn()
        with database.session_scope() as session:
            assert jobs.beat(session, living, LEASE) == "running"
    reconciler.turn()
    assert (status_of(database, living.job_id), status_of(database, dead.job_id)) == ("running", "queued")


def test_nothing_expires_by_a_clock_that_differs_from_the_databases(
    reconciler: Reconciler, database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with database.session_scope() as session:
        old = utc_now() - idempotency.KEPT - timedelta(hours=1)
        answer = {"body_sha256": "", "status": 0, "headers": {}, "body": {}}
        session.add(IdempotencyRecord(tenant="t", route="r", key="k", created_at=old, **answer))
    clock.ahead = -7200
    reconciler.turn()
    assert "The clock of this process is 7200 s ahead of the database's." in caplog.text
    assert kept_answers(database) == 1
    clock.ahead = 0
    reconciler.turn()
    assert kept_answers(database) == 0


def test_nothing_is_rung_while_the_broker_is_away(reconciler: Reconciler, database: Database, broker: Broker) -> None:
    submitted(database)
    rung: list[str] = []
    broker.waiting = lambda: None  # type: ignore[method-assign]
    broker.ring = rung.append  # type: ignore[method-assign, assignment]
    reconciler.turn()
    assert rung == []


def test_what_nobody_owns_goes_at_the_first_turn_and_then_at_times(
    reconciler: Reconciler, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    for module, name in (("intake.orphans", "sweep"), ("intake.orphans", "sweep_artifacts"), ("checkpoints", "sweep")):
        monkeypatch.setattr(f"service.{module}.{name}", lambda *_, told=f"{module}.{name}": swept.append(told))
    reconciler.turn()
    reconciler.turn()
    assert swept == ["intake.orphans.sweep", "intake.orphans.sweep_artifacts", "checkpoints.sweep"]
    monkeypatch.setattr("service.reconciler.time.monotonic", lambda: 1e12)
    reconciler.turn()
    assert len(swept) == 6


def test_the_loop_outlives_errors(settings: Settings, database: Database, broker: Broker) -> None:
    fast = settings.model_copy(update={"reconcile_seconds": 0.01})
    reconciler = Reconciler(fast, database, broker, KeyUse())
    turns, third = [], threading.Event()

    def turn() -> None:
        turns.append(1)
        if len(turns) == 3:
            third.set()
        raise RuntimeError("database gone")

    reconciler.turn = turn  # type: ignore[method-assign]
    reconciler.start()
    assert third.wait(10)
    reconciler.stop()


def test_the_use_of_keys_is_stored_at_the_latest_when_the_loop_ends(
    settings: Settings, database: Database, broker: Broker
) -> None:
    with database.session_scope() as session:
        row, _ = auth.issue_key(session, tenant="default", name="k", scopes=["read"])
    use = KeyUse()
    reconciler = Reconciler(settings, database, broker, use)
    use.note(row.id)
    reconciler.start()
    reconciler.stop()
    with database.session_scope(read_only=True) as session:
        assert session.get_one(ApiKey, row.id).last_used_at is not None
