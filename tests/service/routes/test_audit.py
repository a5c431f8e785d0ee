"""The audit log over HTTP: who may read it, and how it is filtered."""

from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from service.audit import record
from service.auth import issue_key
from service.db import Database
from service.tables import AuditEntry, utc_now
from tests.databases import on_databases
from tests.service.samples import TENANT

AUDIT = "/v1/audit"


def written(database: Database) -> None:
    """Two entries of the tenant, one of another."""
    with database.session_scope() as session:
        record(session, tenant=TENANT, key_id="key_1", action="job.create", target="job_1")
        record(session, tenant=TENANT, key_id="key_2", action="job.cancel", target="job_1", data={"a": "b"})
        record(session, tenant="other", key_id="key_3", action="job.create", target="job_3")


@on_databases
def test_entries_of_the_tenant_are_listed_newest_first(client: TestClient, database: Database) -> None:
    written(database)
    page = client.get(AUDIT, params={"limit": 1}).json()
    assert page["data"][0] | {"id": "", "created_at": ""} == {
        "id": "", "object": "audit_entry", "created_at": "", "key_id": "key_2", "action": "job.cancel",
        "target": "job_1", "request_id": "", "data": {"a": "b"},
    }  # fmt: skip
    assert page["data"][0]["id"].startswith("aud_")
    rest = client.get(AUDIT, params={"cursor": page["next_cursor"]}).json()
    assert [entry["key_id"] for entry in rest["data"]] == ["key_1"]
    assert rest["next_cursor"] is None


@on_databases
@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("action", "job.create", ["key_1"]),
        ("target", "job_1", ["key_2", "key_1"]),
        ("target", "job_3", []),
        ("key_id", "key_2", ["key_2"]),
        ("created_after", timedelta(hours=-1), ["key_2"]),
        ("created_before", timedelta(hours=-1), ["key_1"]),
    ],
)
def test_a_filter_narrows_the_list(
    client: TestClient, database: Database, name: str, value: str | timedelta, found: list[str]
) -> None:
    written(database)
    with database.session_scope() as session:
        for entry in session.query(AuditEntry).where(AuditEntry.key_id == "key_1"):
            entry.time = utc_now() - timedelta(hours=2)
    given = (utc_now() + value).isoformat() if isinstance(value, timedelta) else value
    answer = client.get(AUDIT, params={name: given})
    assert [entry["key_id"] for entry in answer.json()["data"]] == found


def test_only_an_admin_key_reads_it(client: TestClient, database: Database) -> None:
    with database.session_scope() as session:
        _, plaintext = issue_key(session, tenant=TENANT, name="w", scopes=["write"])
    answer = client.get(AUDIT, headers={"Authorization": f"Bearer {plaintext}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING")
    assert client.get(AUDIT, params={"created_after": "yesterday"}).status_code == 422
