"""A tenant's limits and usage over HTTP."""

from starlette.testclient import TestClient

from service.auth import issue_key
from service.db import Database
from service.tables import Tenant
from tests.databases import on_databases
from tests.service.samples import TENANT, store, submitted


@on_databases
def test_a_key_sees_the_limits_and_the_usage_of_its_own_tenant(client: TestClient, database: Database) -> None:
    submitted(database)
    store(database, Tenant(name=TENANT, limits={"stored_bytes": 9000, "requests_per_minute": 50}))
    with database.session_scope() as session:
        _, stranger = issue_key(session, tenant="other", name="s", scopes=["read"])
    assert client.get("/v1/tenant").json() == {
        "object": "tenant",
        "name": TENANT,
        "limits": {"stored_bytes": 9000, "queued_jobs": None, "running_jobs": None, "requests_per_minute": 50},
        "usage": {"stored_bytes": 4000, "queued_jobs": 1, "running_jobs": 0},
    }
    theirs = client.get("/v1/tenant", headers={"Authorization": f"Bearer {stranger}"}).json()
    assert theirs["name"] == "other"
    assert set(theirs["limits"].values()) == {None}
    assert set(theirs["usage"].values()) == {0}
