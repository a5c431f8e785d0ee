"""What is asked of a long queue again and again walks along indexes, whatever stands in the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

from service import jobs
from service.db import Database
from tests.service.samples import TENANT
from tests.service.test_turns import flooded

Asked = list[tuple[str, Any]]


@contextmanager
def listening(engine: Engine) -> Iterator[Asked]:
    """The statements of the block, with their parameters."""
    asked: Asked = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def scans(engine: Engine, asked: Asked, containing: str) -> list[tuple[str, str | None]]:
    """How PostgreSQL reads the table of jobs for those statements: kind of scan, and index."""
    chosen = [(statement, parameters) for statement, parameters in asked if containing in statement]
    assert chosen, [statement for statement, _ in asked]
    found = []
    with engine.connect() as connection:
        for statement, parameters in chosen:
            plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
            found += list(_nodes(plan[0]["Plan"]))
    return [(node["Node Type"], node.get("Index Name")) for node in found if node.get("Relation Name") == "jobs"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_pages_and_claims_of_ten_thousand_jobs_walk_along_indexes(client: TestClient, database: Database) -> None:
    flooded(database, tenants=3, count=10_000)
    with database.session_scope() as session:
        session.connection().exec_driver_sql(f"UPDATE jobs SET tenant = '{TENANT}' WHERE tenant = 't0'")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE jobs")
    app = client.app
    assert isinstance(app, FastAPI)
    with listening(app.state.database.engine) as asked:
        page = client.get("/v1/jobs").json()
        assert len(client.get("/v1/jobs", params={"cursor": page["next_cursor"]}).json()["data"]) == 20
    read = scans(database.engine, asked, "ORDER BY jobs.id DESC")
    assert {kind for kind, _ in read} == {"Index Scan"}, read
    with listening(database.engine) as asked, database.session_scope() as session:
        assert jobs.claim_next(session, "w1", 60.0) is not None
    read = scans(database.engine, asked, "RECURSIVE")
    assert "ix_jobs_status_tenant_priority_id" in {index for _, index in read}
    assert all(index for _, index in read), read
