"""What Prometheus reads: jobs from the tables, requests and bytes of the process."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert
from starlette.testclient import TestClient

from service import jobs
from service.app import create_app
from service.config import Settings
from service.db import Database
from service.observe import Telemetry
from service.tables import Attempt, Job, WebhookDelivery, WebhookEndpoint, utc_now
from tests.databases import on_databases
from tests.service.samples import RESULT, TENANT, a_model, a_worker, store, submitted

FATAL = {"code": "BAD_DATA", "message": "m", "blame": "user", "retryable": False}


def scrape(client: TestClient) -> dict[str, float]:
    """Every sample by its name and labels, as `name{label=value}`."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def run(database: Database, job: Job, end: str, seconds: float = 20.0) -> None:
    """Claim a job, let it have run so long, and end it."""
    with database.session_scope() as session:
        held = jobs.claim(session, job.id, "w1", 60.0)
        assert held is not None
        attempt = session.get_one(Attempt, (job.id, held.token))
        attempt.started_at = utc_now() - timedelta(seconds=seconds)
        session.get_one(Job, job.id).created_at = attempt.started_at - timedelta(seconds=4)
        if end == "succeeded":
            result = RESULT | {"engine": RESULT["engine"] | {"seconds": {"loading": 1.5, "invented": 9.0}}}
            assert jobs.finish(session, held, "succeeded", result, None, [])
        elif end == "failed":
            jobs.fail(session, held, FATAL, 3)


@on_databases
def test_jobs_are_counted_as_they_start_and_end(client: TestClient, database: Database) -> None:
    before = scrape(client)
    assert before["secateur_job_queue_wait_seconds_count"] == 0
    run(database, submitted(database), "succeeded")
    run(database, submitted(database), "failed")
    after = [scrape(client), scrape(client)][1]
    assert after["secateur_job_queue_wait_seconds_count"] == 2
    assert after["secateur_job_queue_wait_seconds_sum"] == pytest.approx(8.0, abs=0.1)
    assert after["secateur_job_queue_wait_seconds_bucket{le=5.0}"] == 2
    assert after["secateur_job_run_seconds_count{status=succeeded}"] == 1
    assert after["secateur_job_run_seconds_sum{status=failed}"] == pytest.approx(20.0, abs=1.0)
    assert after["secateur_job_run_seconds_count{status=cancelled}"] == 0
    assert after["secateur_job_phase_seconds_total{phase=loading}"] == 1.5
    assert not any("invented" in name for name in after)
    assert after["secateur_job_failures_total{code=BAD_DATA}"] == 1
    assert after["secateur_job_attempts_total{outcome=succeeded}"] == 1
    assert after["secateur_job_attempts_total{outcome=failed}"] == 1
    assert after["secateur_jobs{status=failed}"] == 1


def test_an_attempt_that_is_tried_again_is_no_failure_and_no_second_wait(
    client: TestClient, database: Database
) -> None:
    job = submitted(database)
    with database.session_scope() as session:
        held = jobs.claim(session, job.id, "w1", 60.0)
        assert held is not None
        jobs.fail(session, held, FATAL | {"code": "OUT_OF_MEMORY", "retryable": True}, 3)
        session.get_one(Job, job.id).not_before = None
    run(database, job, "succeeded")
    shown = scrape(client)
    assert shown["secateur_job_attempts_total{outcome=out_of_memory}"] == 1
    assert shown["secateur_job_queue_wait_seconds_count"] == 1
    assert not any(name.startswith("secateur_job_failures_total") for name in shown)


@on_databases
def test_a_lost_checkpoint_is_counted_once(client: TestClient, database: Database) -> None:
    job = submitted(database)
    with database.session_scope() as session:
        held = jobs.claim(session, job.id, "w1", 60.0)
        assert held is not None and jobs.fall_back(session, held, {"step": 8}, None)
    for _ in range(2):
        assert scrape(client)["secateur_job_checkpoints_lost_total"] == 1


def test_deleting_a_job_takes_nothing_back(client: TestClient, database: Database) -> None:
    job = submitted(database)
    run(database, job, "succeeded")
    before = scrape(client)["secateur_job_run_seconds_count{status=succeeded}"]
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert scrape(client)["secateur_job_run_seconds_count{status=succeeded}"] == before == 1


def test_every_process_counts_what_happens_after_its_start(
    settings: Settings, database: Database, api_key: str
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    run(database, submitted(database), "succeeded")
    with (
        TestClient(create_app(settings), base_url="http://127.0.0.1:8400", headers=headers) as one,
        TestClient(create_app(settings), base_url="http://127.0.0.1:8400", headers=headers) as two,
    ):
        run(database, submitted(database), "failed")
        for client in (one, two):
            shown = scrape(client)
            assert shown["secateur_job_run_seconds_count{status=succeeded}"] == 0
            assert shown["secateur_job_run_seconds_count{status=failed}"] == 1
            assert shown["secateur_jobs{status=succeeded}"] == 1


@on_databases
def test_gauges_tell_of_this_moment(client: TestClient, database: Database) -> None:
    store(database, a_worker("w1", "cpu", "cuda", "cuda"), a_worker("w2"), a_worker("gone", lives=0))
    run(database, submitted(database), "nothing yet")
    old = submitted(database)
    with database.session_scope() as session:
        session.get_one(Job, old.id).created_at = utc_now() - timedelta(seconds=90)
        session.get_one(Job, old.id).checkpoint = {"key": "k", "files": [], "step": 1, "token": 1}
        endpoint = WebhookEndpoint(id="whe_1", tenant=TENANT, url="https://a.example", events=[], secrets=[])
        session.add(endpoint)
        session.flush()
        session.add(a_delivery("failed"))
    shown = scrape(client)
    assert (shown["secateur_jobs{status=queued}"], shown["secateur_jobs{status=running}"]) == (1, 1)
    assert shown["secateur_oldest_queued_job_age_seconds"] == pytest.approx(90, abs=5)
    assert shown["secateur_resumable_jobs"] == 1
    assert shown["secateur_workers"] == 2
    devices = {name: value for name, value in shown.items() if name.startswith("secateur_devices")}
    assert devices == {
        "secateur_devices{kind=cpu,state=busy}": 0,
        "secateur_devices{kind=cpu,state=idle}": 2,
        "secateur_devices{kind=cuda,state=busy}": 1,
        "secateur_devices{kind=cuda,state=idle}": 1,
    }
    assert shown["secateur_webhook_deliveries{status=failed}"] == 1
    assert shown["secateur_webhook_deliveries{status=pending}"] == 0
    assert shown["secateur_storage_free_bytes"] > 0


def a_delivery(status: str) -> WebhookDelivery:
    return WebhookDelivery(
        id=f"wvd_{status}",
        tenant=TENANT,
        endpoint_id="whe_1",
        event_id="evt_1",
        type="job.failed",
        data={},
        status=status,
        due_at=0.0,
    )


def test_bytes_are_counted_by_route(client: TestClient, database: Database) -> None:
    body = b"x" * 5000
    client.post("/v1/models?name=n", content=body, headers={"Content-Type": "application/zip"})
    got = len(client.get("/v1/jobs").content)
    shown = scrape(client)
    assert shown["secateur_http_received_bytes_total{route=/v1/models}"] == 5000
    assert shown["secateur_http_sent_bytes_total{route=/v1/jobs}"] == got


@pytest.fixture
def ten_thousand_jobs(database: Database) -> Iterator[Database]:
    """Finished jobs of one day, with results of an ordinary size."""
    model = store(database, a_model())
    result = RESULT | {"report": "x" * 4000}
    template = {name: value for name, value in vars(submitted(database, result=result)).items() if name[0] != "_"}
    template = {**template, "model_id": model.id, "status": "succeeded"}
    rows: list[dict[str, Any]] = [{**template, "id": f"job_{number:026d}"} for number in range(10_000)]
    ends = [utc_now() - timedelta(seconds=number * 8.64) for number in range(len(rows))]
    tries = [
        {"job_id": row["id"], "token": 1, "worker": "w", "started_at": end, "finished_at": end, "outcome": "succeeded"}
        for row, end in zip(rows, ends, strict=True)
    ]
    with database.session_scope() as session:
        session.execute(insert(Job), rows)
        session.execute(insert(Attempt), tries)
    yield database


@on_databases
def test_a_scrape_of_ten_thousand_jobs_is_quick(ten_thousand_jobs: Database) -> None:
    telemetry, taken = Telemetry(), []
    with ten_thousand_jobs.session_scope(read_only=True) as session:
        telemetry.begin(session)
        for _ in range(5):
            started = time.perf_counter()
            telemetry.render(session, 1)
            taken.append(time.perf_counter() - started)
    assert min(taken) < 1, taken
