"""Migrations: from nothing to the tables of today, on both databases, from any process at once."""

import threading

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import inspect

from service.db import make_engine
from service.migrate import check, configuration, is_ahead, is_behind, upgrade
from service.tables import Base


def _tables(url: str) -> set[str]:
    engine = make_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_migrations_make_exactly_the_tables(empty_url: str) -> None:
    upgrade(empty_url)
    upgrade(empty_url)
    assert _tables(empty_url) == {*Base.metadata.tables, "alembic_version"}
    check(empty_url)
    engine = make_engine(empty_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE workers")
    engine.dispose()
    with pytest.raises(CommandError, match="workers"):
        check(empty_url)


def test_any_number_of_processes_may_migrate_at_once(empty_url: str) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            upgrade(empty_url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert "jobs" in _tables(empty_url)


def test_a_database_of_a_newer_release_stays_as_it_is(empty_url: str) -> None:
    upgrade(empty_url)
    engine = make_engine(empty_url)
    with engine.begin() as connection:
        assert not is_ahead(connection)
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    upgrade(empty_url)
    with engine.connect() as connection:
        assert is_ahead(connection) and not is_behind(connection)
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == ["9999"]
    engine.dispose()


def test_migrations_can_be_taken_back(empty_url: str) -> None:
    upgrade(empty_url)
    engine = make_engine(empty_url)
    with engine.begin() as connection:
        command.downgrade(configuration(connection), "base")
    engine.dispose()
    assert _tables(empty_url) == {"alembic_version"}


def test_history_has_one_head() -> None:
    assert len(ScriptDirectory.from_config(configuration()).get_heads()) == 1
