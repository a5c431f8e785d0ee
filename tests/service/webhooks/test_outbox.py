"""What is put out, and when: with the event or not at all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import jobs
from service.db import Database
from service.jobs import Claim
from service.remedies import remedy
from service.tables import Event, Job, WebhookAttempt, WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import outbox
from service.webhooks.payload import WebhookPayload, body
from tests.databases import on_databases
from tests.service.samples import RESULT, submitted
from tests.service.webhooks.conftest import an_endpoint

URL = "https://hooks.example/in"
ERROR: dict[str, Any] = {"code": "DATA_UNUSABLE", "message": "A row is broken.", "blame": "user", "retryable": False}


def rows(database: Database) -> list[WebhookDelivery]:
    """All deliveries, oldest first."""
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def run(database: Database, job: Job, *steps: Callable[[Session, Claim], object]) -> None:
    """Claim a job and take steps with the claim, each in a transaction of its own."""
    with database.session_scope() as session:
        claim = jobs.claim(session, job.id, "w1", 60)
    assert claim is not None
    for step in steps:
        with database.session_scope() as session:
            step(session, claim)


def cancel(session: Session, claim: Claim) -> None:
    """Ask for a cancel."""
    jobs.cancel(session, session.get_one(Job, claim.job_id))


def ends_as(status: str) -> Callable[[Session, Claim], object]:
    """The step that ends a job in this way."""
    if status == "failed":
        return lambda session, claim: jobs.fail(session, claim, ERROR, 3)
    return lambda session, claim: jobs.finish(session, claim, status, {**RESULT, "model_id": None}, None, [])


@on_databases
@pytest.mark.parametrize("status", ["succeeded", "rejected", "failed"])
def test_a_job_that_ends_is_told_twice(database: Database, status: str) -> None:
    an_endpoint(database, URL)
    job = submitted(database)
    run(database, job, ends_as(status))
    started, ended = rows(database)
    assert (started.type, started.data["status"]) == ("job.started", "running")
    assert (ended.type, ended.data["status"], ended.data["id"]) == (f"job.{status}", status, job.id)
    with database.session_scope(read_only=True) as session:
        events = {event.type: event.id for event in session.scalars(select(Event))}
    assert [started.event_id, ended.event_id] == [events[started.type], events[ended.type]]
    assert ended.data["error"] == (ERROR | {"advice": remedy(ERROR["code"])} if status == "failed" else None)
    assert ended.data["result"] == (None if status == "failed" else {"model_id": None, "verdict": RESULT["verdict"]})


@on_databases
def test_both_ways_of_a_cancel_and_a_crash_loop_are_told(database: Database) -> None:
    an_endpoint(database, URL)
    run(database, submitted(database), cancel, jobs.confirm_cancelled)
    queued = submitted(database)
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, queued.id))
    lost = submitted(database)
    with database.session_scope() as session:
        assert jobs.claim(session, lost.id, "gone", -1)
        jobs.reconcile(session, max_attempts=1)
    told = [row.type for row in rows(database)]
    assert sorted(told) == ["job.cancelled", "job.cancelled", "job.failed", "job.started", "job.started"]


@on_databases
def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    an_endpoint(database, URL)
    job = submitted(database)
    with pytest.raises(RuntimeError), database.session_scope() as session:
        assert jobs.claim(session, job.id, "w1", 60)
        raise RuntimeError
    assert rows(database) == []


def test_each_endpoint_gets_what_it_asks_for(database: Database) -> None:
    asking = an_endpoint(database, URL, events=["job.succeeded"])
    an_endpoint(database, URL, enabled=False)
    an_endpoint(database, URL, tenant="other")
    everything = an_endpoint(database, URL)
    run(database, submitted(database), ends_as("succeeded"))
    told = [(row.endpoint_id, row.type) for row in rows(database)]
    assert sorted(told) == sorted(
        [(everything.id, "job.started"), (everything.id, "job.succeeded"), (asking.id, "job.succeeded")]
    )


@on_databases
def test_a_jobs_own_url_is_told_through_the_endpoint_without_one(database: Database) -> None:
    first, second = submitted(database, webhook_url=f"{URL}/1"), submitted(database, webhook_url=f"{URL}/2")
    with database.session_scope(read_only=True) as session:
        signer = session.scalars(select(WebhookEndpoint)).one()
    assert (signer.url, signer.tenant) == (None, first.tenant)
    for job in (first, second):
        run(database, job, ends_as("succeeded"))
    told = [(row.url, row.endpoint_id, row.type) for row in rows(database)]
    assert told == [(f"{URL}/{job}", signer.id, type_) for job in (1, 2) for type_ in ("job.started", "job.succeeded")]


def test_a_deleted_endpoint_of_jobs_is_made_anew(database: Database) -> None:
    job = submitted(database, webhook_url=URL)
    with database.session_scope() as session:
        session.delete(session.scalars(select(WebhookEndpoint)).one())
    run(database, job)
    assert [row.url for row in rows(database)] == [URL]


@on_databases
def test_the_body_is_as_documented_and_thin(database: Database) -> None:
    an_endpoint(database, URL)
    metadata = {f"{index:02}" + "k" * 254: "ä" * 256 for index in range(16)}
    run(database, submitted(database, metadata_=metadata), ends_as("succeeded"))
    last = rows(database)[-1]
    sent = body(last.type, last.created_at, last.data, "https://secateur.example/")
    payload = WebhookPayload.model_validate_json(sent)
    assert payload.data.metadata == metadata
    assert payload.timestamp == last.created_at
    assert payload.data.links == {"self": f"https://secateur.example/v1/jobs/{last.job_id}"}
    assert len(sent) < 20_000
    assert sent == body(last.type, last.created_at, last.data, "https://secateur.example")


@on_databases
def test_the_log_is_kept_for_30_days(database: Database) -> None:
    endpoint = an_endpoint(database, URL)
    for age in (29, 31):
        with database.session_scope() as session:
            row = outbox.queue_test(session, endpoint)
            row.created_at = utc_now() - timedelta(days=age)
            session.add(WebhookAttempt(delivery_id=row.id, number=1))
    with database.session_scope() as session:
        outbox.expire(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 1
        assert session.scalar(select(func.count()).select_from(WebhookAttempt)) == 1
