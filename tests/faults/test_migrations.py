"""Releases are replaced process by process: what an older one runs on, and writes, outlives every migration."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Column, DateTime, Engine, MetaData, String, Table, inspect, select

from service.db import Database, make_engine
from service.migrate import check, configuration, upgrade
from service.readiness import AHEAD
from service.tables import Base
from tests.faults.conftest import Site
from tests.faults.test_outages import order

REVISIONS = [script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()][::-1]
TOMORROW = (
    "ALTER TABLE jobs ADD COLUMN of_tomorrow VARCHAR(40) DEFAULT 'x' NOT NULL",
    "CREATE INDEX ix_jobs_of_tomorrow ON jobs (of_tomorrow)",
    "CREATE TABLE of_tomorrow (id VARCHAR(40) PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE)",
    "UPDATE alembic_version SET version_num = '9999'",
)
BACK = (
    "DROP TABLE of_tomorrow",
    "ALTER TABLE jobs DROP COLUMN of_tomorrow",
    f"UPDATE alembic_version SET version_num = '{REVISIONS[-1]}'",
)


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    """An engine for it."""
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


def run(engine: Engine, *statements: str) -> None:
    """All in one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def value_of(column: Column[Any], mark: str) -> Any:
    """A value for a column; keys and what refers to them are the same word."""
    if isinstance(column.type, String):
        return mark
    if isinstance(column.type, JSON):
        return {}
    return datetime(2026, 1, 1, tzinfo=UTC) if isinstance(column.type, DateTime) else 1


def fill(engine: Engine, tables: MetaData, mark: str) -> None:
    """A row in each table, as code writes it that knows these tables alone."""
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            row = {column.name: value_of(column, mark) for column in table.columns}
            connection.execute(table.insert().values(row))


def rows(engine: Engine, table: Table) -> list[Any]:
    """What such code reads."""
    with engine.connect() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key.columns)))


def reflected(engine: Engine) -> MetaData:
    """The tables that are there."""
    tables = MetaData()
    tables.reflect(engine)
    tables.remove(tables.tables["alembic_version"])
    return tables


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_code_of_each_earlier_revision_goes_on_with_the_tables_of_today(
    revision: str, empty_url: str, engine: Engine
) -> None:
    with engine.begin() as connection:
        command.upgrade(configuration(connection), revision)
    old = reflected(engine)
    fill(engine, old, "before")
    kept = {table.name: rows(engine, table) for table in old.sorted_tables}
    upgrade(empty_url)
    check(empty_url)
    assert {table.name: rows(engine, table) for table in old.sorted_tables} == kept
    fill(engine, old, "since")
    for table in old.sorted_tables:
        assert len(rows(engine, table)) == 2
    assert_only_more(old, engine)
    assert_read_today(empty_url, old)


def assert_only_more(old: MetaData, engine: Engine) -> None:
    """Each column of before is there, of the same type, and takes null where it did."""
    now = inspect(engine)
    for table in old.sorted_tables:
        columns = {column["name"]: column for column in now.get_columns(table.name)}
        for column in table.columns:
            found = columns[column.name]
            assert str(found["type"]) == str(column.type), f"{column} has changed its type"
            assert found["nullable"] or not column.nullable, f"{column} takes no null any more"


def assert_read_today(url: str, old: MetaData) -> None:
    """Today's code reads the rows of before and those that the old code has written since."""
    database = Database(url)
    with database.session_scope(read_only=True) as session:
        for mapper in Base.registry.mappers:
            found = session.scalars(select(mapper.class_)).all()
            assert len(found) == (2 if mapper.local_table.name in old.tables else 0)  # type: ignore[attr-defined]
    database.dispose()


def test_the_check_sees_what_is_taken_away(empty_url: str, engine: Engine) -> None:
    upgrade(empty_url)
    old = reflected(engine)
    run(engine, "DROP INDEX ix_jobs_expires_at", "ALTER TABLE jobs DROP COLUMN expires_at")
    with pytest.raises(KeyError, match="expires_at"):
        assert_only_more(old, engine)


def test_a_newer_release_migrates_under_a_running_job_and_its_tables_suit_what_starts_anew(site: Site) -> None:
    url = site.live.settings.database
    engine = make_engine(url)
    running = site.submit()
    site.running(running)
    run(engine, *TOMORROW)
    try:
        swift = order(site)
        assert site.live.api is not None
        site.live.api.kill()
        site.live.api.wait()
        upgrade(url)
        site.live.start_api()
        for job_id in (running, swift):
            site.assert_one_result(job_id, ["succeeded"])
        assert AHEAD in site.live.client.get("/readyz").json()["warnings"]
    finally:
        run(engine, *BACK)
        engine.dispose()
