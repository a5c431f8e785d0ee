"""Transactions: committed whole or not at all, callbacks after the commit only, times by the database's clock."""

import sqlite3
import time
from contextlib import closing

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from service import postgresql
from service.db import Database, db_epoch, journal_mode, make_engine, on_commit
from service.tables import Worker
from tests.databases import on_databases
from tests.servers import PostgreSQL
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


@pytest.mark.parametrize(
    ("version", "mode"), [((3, 40, 1), "DELETE"), ((3, 51, 2), "DELETE"), ((3, 51, 3), "WAL"), ((3, 52, 0), "WAL")]
)
def test_a_write_ahead_log_is_used_only_by_sqlite_that_keeps_it_safe(version: tuple[int, ...], mode: str) -> None:
    assert journal_mode(version) == mode


def test_the_journal_is_chosen_once_whatever_the_file_had_before(database_url: str) -> None:
    wanted = journal_mode(sqlite3.sqlite_version_info)
    other = "DELETE" if wanted == "WAL" else "WAL"
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
        assert file.execute(f"PRAGMA journal_mode={other}").fetchone() == (other.lower(),)
    database = Database(database_url)
    told: list[str] = []
    event.listen(database.engine, "connect", lambda raw, _: raw.set_trace_callback(told.append))
    with database.engine.connect() as first, database.engine.connect() as second:
        for connection in (first, second):
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == wanted.lower()
            connection.rollback()
    assert not any("journal_mode=" in statement for statement in told), "another connection chose again"
    database.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_ends_what_takes_too_long_and_the_connection_stays_good(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgresql._SERVER, "statement_timeout", "50ms")
    with pytest.raises(OperationalError, match="statement timeout"), database.session_scope() as session:
        session.execute(text("SELECT pg_sleep(10)"))
    assert _workers(database) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_transaction_that_its_process_forgot_gives_its_locks_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgresql._SERVER, "idle_in_transaction_session_timeout", "100ms")
    lock = text("SELECT pg_advisory_xact_lock(1)")
    with pytest.raises(SQLAlchemyError), database.session_scope() as forgotten:
        forgotten.execute(lock)
        with database.session_scope() as other:
            other.execute(lock)
        forgotten.execute(lock)


def test_migrations_may_take_as_long_as_they_need(postgresql_server: PostgreSQL) -> None:
    url = postgresql_server.url("postgres")
    for bounded, seconds in ((True, "12s"), (False, "0")):
        engine = make_engine(url, bounded=bounded)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == seconds
        engine.dispose()


def test_the_options_of_an_url_are_kept(postgresql_server: PostgreSQL) -> None:
    engine = make_engine(f"{postgresql_server.url('postgres')}?options=-csearch_path%3Delsewhere")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "elsewhere"
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "12s"
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_refuses_writes_in_a_reading_transaction(database: Database) -> None:
    with pytest.raises(SQLAlchemyError, match="read-only"), database.session_scope(read_only=True) as session:
        session.add(a_worker())
        session.flush()
    with database.session_scope() as session:
        session.add(a_worker())
    assert _workers(database) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_reading_transaction_sees_one_moment(database: Database) -> None:
    with database.session_scope(read_only=True) as session:
        before = session.scalar(select(func.count()).select_from(Worker))
        with database.session_scope() as other:
            other.add(a_worker())
        assert session.scalar(select(func.count()).select_from(Worker)) == before
    assert _workers(database) == 1
