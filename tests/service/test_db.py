"""Transactions: committed whole or not at all, callbacks after the commit only, times by the database's clock."""

import time

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database, db_epoch, make_engine, on_commit
from service.tables import Worker
from tests.databases import on_databases
from tests.service.samples import a_worker


def _workers(database: Database) -> int:
    with database.session_scope(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(Worker)) or 0


@on_databases
def test_an_error_rolls_everything_back(database: Database) -> None:
    called: list[str] = []
    with pytest.raises(KeyError), database.session_scope() as session:
        session.add(a_worker())
        session.flush()
        on_commit(session, lambda: called.append("never"))
        raise KeyError
    assert (_workers(database), called) == (0, [])


@on_databases
def test_callbacks_run_in_order_after_the_commit(database: Database) -> None:
    seen: list[tuple[str, int]] = []
    with database.session_scope() as session:
        session.add(a_worker())
        on_commit(session, lambda: seen.append(("first", _workers(database))))
        on_commit(session, lambda: seen.append(("second", _workers(database))))
        assert seen == []
    assert seen == [("first", 1), ("second", 1)]


@on_databases
def test_a_failing_commit_raises_and_calls_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    with pytest.raises(SQLAlchemyError), database.session_scope() as session:
        session.add(a_worker("same"))
        session.flush()
        session.expunge_all()
        session.add(a_worker("same"))
        on_commit(session, lambda: called.append("never"))
    assert (_workers(database), called) == (0, [])


@on_databases
def test_the_databases_clock_is_in_seconds_since_1970(database: Database) -> None:
    with database.session_scope(read_only=True) as session:
        read = session.scalar(select(db_epoch()))
    assert read is not None
    assert abs(read - time.time()) < 60


def test_postgresql_urls_get_the_installed_driver() -> None:
    engine = make_engine("postgresql://somebody:secret@127.0.0.1:1/none")
    assert engine.url.drivername == "postgresql+psycopg"
    assert "secret" not in repr(engine)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_refuses_writes_in_a_reading_transaction(database: Database) -> None:
    with pytest.raises(SQLAlchemyError, match="read-only"), database.session_scope(read_only=True) as session:
        session.add(a_worker())
        session.flush()
    with database.session_scope() as session:
        session.add(a_worker())
    assert _workers(database) == 1
