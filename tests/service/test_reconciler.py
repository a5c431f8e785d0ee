"""The reconciler: rings what the broker forgot, survives what fails, notes the use of keys."""

import threading
from collections.abc import Iterator

import pytest

from service import auth, jobs
from service.auth import KeyUse
from service.broker import Broker
from service.config import Settings
from service.db import Database
from service.reconciler import Reconciler
from service.tables import ApiKey, Job
from tests.service.samples import submitted


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


def test_a_lost_job_is_queued_and_rung(reconciler: Reconciler, database: Database, broker: Broker) -> None:
    job = submitted(database)
    with database.session_scope() as session:
        assert jobs.claim(session, job.id, "gone", -1)
    reconciler.turn()
    with database.session_scope(read_only=True) as session:
        assert session.get_one(Job, job.id).status == "queued"
    assert broker.waiting() == {job.id}


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
