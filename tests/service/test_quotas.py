"""Quotas over HTTP: what counts, who is refused, and that nothing is kept of what is refused."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service import jobs, quotas
from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.errors import Forbidden, TooManyRequests
from service.intake import uploads
from service.storage import open_storage
from service.tables import Dataset, Job, Model, Tenant, Upload, utc_now
from tests.databases import on_databases
from tests.service.routes.test_datasets import JSONL
from tests.service.routes.test_datasets import post as post_dataset
from tests.service.routes.test_manifests import begin, complete, manifest, send, send_all
from tests.service.routes.test_models import MODELS, post
from tests.service.samples import TENANT, a_dataset, a_job, a_model, a_spec, an_artifact, store, submitted
from tests.uploads import bert_files, tar

FILES = bert_files()


def limit(database: Database, **limits: int) -> None:
    """Give the tenant limits of its own."""
    with database.session_scope() as session:
        session.merge(Tenant(name=TENANT, limits=limits))


def used(client: TestClient) -> dict[str, int]:
    """What the API says that the tenant uses."""
    return dict(client.get("/v1/tenant").json()["usage"])


def kept(settings: Settings) -> list[Path]:
    """Every file in storage and scratch."""
    folders = (settings.data_dir / "storage", settings.scratch)
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@on_databases
def test_all_that_a_tenant_stores_is_counted(client: TestClient, database: Database) -> None:
    assert used(client) == {"stored_bytes": 0, "queued_jobs": 0, "running_jobs": 0}
    job = submitted(database, status="succeeded")  # with a model of 4000 bytes
    files = [an_artifact(job, f"exports/{size}", b"x" * size, "0" * 64, f"artifacts/{size}") for size in (1, 20)]
    made = a_model(size=5000, job_id=job.id)  # its bytes are the job's artifacts
    uploading, deleted = a_model(size=700, state="uploading"), a_model(deleted_at=utc_now())
    store(database, made, uploading, deleted, a_dataset(), a_dataset(deleted_at=utc_now()), *files)
    submitted(database, tenant="other")
    assert used(client)["stored_bytes"] == 4000 + 21 + 700 + 300
    with database.session_scope() as session:
        session.get_one(Job, job.id).expired_at = utc_now()
    assert used(client)["stored_bytes"] == 4000 + 700 + 300


@on_databases
def test_jobs_are_counted_by_what_they_do(client: TestClient, database: Database) -> None:
    for status in ("queued", "queued", "running", "cancelling", "succeeded", "failed"):
        submitted(database, status=status)
    submitted(database, status="queued", tenant="other")
    assert used(client) == {"stored_bytes": 6 * 4000, "queued_jobs": 2, "running_jobs": 2}


def refused(answer: Any, limit: int, used: int) -> None:
    """The answer to a byte too many."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (403, "QUOTA_EXCEEDED")
    assert (problem["quota"], problem["limit"], problem["used"]) == ("stored_bytes", limit, used)


@on_databases
def test_an_upload_over_the_quota_leaves_nothing(client: TestClient, database: Database, settings: Settings) -> None:
    archive, size = tar(FILES), sum(map(len, FILES.values()))
    limit(database, stored_bytes=size - 1)
    refused(post(client, archive), size - 1, 0)  # announced

    def unannounced() -> Iterator[bytes]:
        yield archive

    refused(client.post(MODELS, content=unannounced(), headers={"Content-Type": "application/x-tar"}), size - 1, 0)
    refused(client.post(MODELS, json=manifest(FILES)), size - 1, 0)
    limit(database, stored_bytes=10)
    refused(post_dataset(client, {"train": JSONL}), 10, 0)
    assert kept(settings) == []
    assert used(client)["stored_bytes"] == 0
    with database.session_scope(read_only=True) as session:
        assert not any(session.scalar(select(func.count()).select_from(kind)) for kind in (Model, Dataset, Upload))


@on_databases
def test_what_is_announced_is_reserved_and_given_back(client: TestClient, database: Database) -> None:
    size = sum(map(len, FILES.values()))
    limit(database, stored_bytes=2 * size + 10_000)
    first = begin(client, FILES)
    second = begin(client, FILES, name="second")
    assert used(client)["stored_bytes"] == 2 * size
    refused(client.post(MODELS, json=manifest(FILES, name="third")), 2 * size + 10_000, 2 * size)
    begin(client, FILES)  # goes on with the first
    assert client.delete(f"{MODELS}/{second['id']}").status_code == 204
    send_all(client, first, FILES)
    assert complete(client, first).status_code == 200
    assert used(client)["stored_bytes"] == pytest.approx(size, abs=1000)
    answer = post(client, tar(FILES))
    assert answer.status_code == 201, answer.text


@on_databases
def test_an_abandoned_upload_gives_back_its_space_and_its_room_after_a_day(
    client: TestClient, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, FILES.values()))
    limit(database, stored_bytes=size + 10_000)
    begun = utc_now()
    model = begin(client, FILES)
    send(client, model["uploads"][0], FILES["config.json"])
    assert kept(settings) and used(client)["stored_bytes"] == size
    storage = open_storage(settings.storage)
    for hours, abandoned in ((23.9, []), (24.1, [model["id"]])):
        refused(client.post(MODELS, json=manifest(FILES, name="another")), size + 10_000, size)
        monkeypatch.setattr("service.intake.uploads.utc_now", lambda now=begun + timedelta(hours=hours): now)
        assert uploads.sweep(database, storage, settings.scratch) == abandoned
    assert kept(settings) == [] and used(client)["stored_bytes"] == 0
    begin(client, FILES, name="another")


@on_databases
def test_uploads_at_once_share_what_is_left(client: TestClient, database: Database) -> None:
    bodies = [manifest(FILES, name=f"{number}") for number in range(6)]
    limit(database, stored_bytes=3 * sum(map(len, FILES.values())))
    statuses: list[int] = []

    def send(body: dict[str, Any]) -> None:
        statuses.append(client.post(MODELS, json=body).status_code)

    threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [403] * 3


@on_databases
def test_a_full_queue_is_429_until_a_job_starts(client: TestClient, database: Database) -> None:
    model = store(database, a_model())
    limit(database, queued_jobs=1)
    spec = a_spec(model.id)
    first = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "one"})
    assert first.status_code == 202
    answer = client.post("/v1/jobs", json=spec)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (429, "QUOTA_EXCEEDED")
    assert (problem["quota"], problem["limit"], problem["used"]) == ("queued_jobs", 1, 1)
    assert int(answer.headers["retry-after"]) > 0
    assert client.post(f"/v1/models/{model.id}/inspections", json={}).status_code == 429
    again = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    with database.session_scope() as session:
        other = issue_key(session, tenant="other", name="o", scopes=["write"])[1]
    foreign = store(database, a_model(tenant="other"))
    bearer = {"Authorization": f"Bearer {other}"}
    assert client.post("/v1/jobs", json=a_spec(foreign.id), headers=bearer).status_code == 202
    with database.session_scope() as session:
        assert jobs.claim(session, first.json()["id"], "w", 30) is not None
    assert client.post("/v1/jobs", json=spec).status_code == 202


@on_databases
def test_no_job_is_taken_whose_model_could_not_be_stored(client: TestClient, database: Database) -> None:
    model = store(database, a_model())
    limit(database, stored_bytes=4000)
    refused(client.post("/v1/jobs", json=a_spec(model.id)), 4000, 4000)
    limit(database, stored_bytes=4001)
    assert client.post("/v1/jobs", json=a_spec(model.id)).status_code == 202


@on_databases
def test_a_tenants_own_limits_come_before_the_settings(settings: Settings, database: Database) -> None:
    strict = settings.model_copy(update={"quota_stored_bytes": 1, "quota_queued_jobs": 0, "requests_per_minute": 9})
    with database.session_scope() as session:
        assert quotas.limits_of(session, strict, TENANT).model_dump() == {
            "stored_bytes": 1, "queued_jobs": 0, "running_jobs": None, "requests_per_minute": 9,
        }  # fmt: skip
        session.add(Tenant(name=TENANT, limits={"stored_bytes": 10_000, "queued_jobs": 1}))
        session.flush()
        assert quotas.limits_of(session, strict, TENANT).stored_bytes == 10_000
        quotas.check_room(session, strict, TENANT, 10_000)
        quotas.check_queue(session, strict, TENANT)
        model = a_model()
        session.add(model)
        session.flush()
        session.add(a_job(model.id))
        session.flush()
        with pytest.raises(Forbidden):
            quotas.check_room(session, strict, TENANT, 6001)
        with pytest.raises(TooManyRequests):
            quotas.check_queue(session, strict, TENANT)


@on_databases
def test_a_paused_job_does_not_slip_into_a_full_queue(client: TestClient, database: Database) -> None:
    paused = submitted(database, status="paused")
    submitted(database)
    limit(database, queued_jobs=1)
    assert client.post(f"/v1/jobs/{paused.id}/resume").status_code == 429
    limit(database, queued_jobs=2)
    assert client.post(f"/v1/jobs/{paused.id}/resume").status_code == 200
