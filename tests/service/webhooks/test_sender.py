"""The loop: at least once, signed, whatever the receivers do, whoever dies."""

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler

import pytest

from service import jobs
from service.config import Settings
from service.db import Database
from service.tables import Job, WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import deliveries, outbox, signing
from service.webhooks.addresses import Addresses
from service.webhooks.sender import Sender
from tests.databases import on_databases
from tests.service.samples import submitted
from tests.service.webhooks import receiver as hostile
from tests.service.webhooks.conftest import SECRET, an_endpoint, at_loopback
from tests.service.webhooks.receiver import Receiver, receiver, wait_for
from tests.service.webhooks.test_outbox import cancel, ends_as, rows, run


def put_out(database: Database, endpoint: WebhookEndpoint, count: int = 1) -> list[str]:
    """Tests for an endpoint; returns their event ids."""
    with database.session_scope() as session:
        return [outbox.queue_test(session, endpoint).event_id for _ in range(count)]


@on_databases
def test_every_event_arrives_signed_though_the_receiver_fails_in_every_way(
    database: Database, receiving: Receiver, sender: Sender
) -> None:
    with hostile.forbidden_listener() as (port, callers):
        receiving.plan = [
            hostile.status(500),
            hostile.hang(0.8),
            hostile.status(302, Location=f"http://127.0.0.1:{port}/"),
            hostile.reset,
            hostile.endless_headers,
            hostile.endless_body(503, []),
            hostile.nonsense,
            hostile.drip,
        ]
        an_endpoint(database, receiving.url)
        for status in ("succeeded", "rejected", "failed"):
            run(database, submitted(database), ends_as(status))
        run(database, submitted(database), cancel, jobs.confirm_cancelled)
        wait_for(lambda: all(row.status == "succeeded" for row in rows(database)))
        assert callers == []
    due = {row.event_id: row.type for row in rows(database)}
    taken = {one.event_id: one.verified(SECRET)["type"] for one in receiving.taken()}
    assert taken == due
    assert Counter(due.values()) == Counter(
        {"job.started": 4, "job.succeeded": 1, "job.rejected": 1, "job.failed": 1, "job.cancelled": 1}
    )
    ids = {one.event_id for one in receiving.requests}
    assert ids == set(due) and len(receiving.requests) > len(due), "a repetition has the id of the first"


@on_databases
def test_a_receiver_that_is_down_gets_it_all_when_it_is_up(database: Database, sender: Sender) -> None:
    with receiver() as gone:
        url = gone.url
    endpoint = an_endpoint(database, url)
    put_out(database, endpoint)
    wait_for(lambda: rows(database)[0].attempts >= 2)
    with receiver() as back:
        with database.session_scope() as session:
            session.get_one(WebhookEndpoint, endpoint.id).url = back.url
        assert back.wait(1)[0].verified(SECRET)["type"] == "webhook.test"


@on_databases
def test_of_two_senders_one_sends(
    database: Database, quick: Settings, receiving: Receiver, addresses: Addresses, sender: Sender
) -> None:
    second = Sender(quick, database, addresses)
    second.start()
    try:
        ids = put_out(database, an_endpoint(database, receiving.url), 12)
        wait_for(lambda: all(row.status == "succeeded" for row in rows(database)))
    finally:
        second.stop()
    assert Counter(one.event_id for one in receiving.requests) == Counter(ids)


def test_what_a_process_left_half_sent_is_sent(database: Database, receiving: Receiver, sender: Sender) -> None:
    endpoint = an_endpoint(database, receiving.url, enabled=False)
    put_out(database, endpoint)
    with database.session_scope() as session:
        assert deliveries.claim(session, rows(database)[0].id, 0.2)
        session.get_one(WebhookEndpoint, endpoint.id).enabled = True
    receiving.wait(1)
    wait_for(lambda: rows(database)[0].status == "succeeded")
    assert rows(database)[0].attempts == 2


def test_a_slow_receiver_delays_no_other(
    database: Database, quick: Settings, receiving: Receiver, addresses: Addresses
) -> None:
    release = threading.Event()

    def held(handler: BaseHTTPRequestHandler) -> None:
        release.wait(20)
        hostile.status(204)(handler)

    receiving.always = held
    sender = Sender(quick.model_copy(update={"webhook_timeout_seconds": 30.0}), database, addresses)
    sender.start()
    put_out(database, an_endpoint(database, receiving.url), 40)
    wait_for(lambda: len(receiving.requests) == deliveries.AT_ONCE_PER_ENDPOINT)
    with receiver() as well:
        put_out(database, an_endpoint(database, well.url, tenant="other"))
        put_out(database, an_endpoint(database, well.url))
        well.wait(2)
    assert len(receiving.requests) == deliveries.AT_ONCE_PER_ENDPOINT
    release.set()
    receiving.wait(40)
    sender.stop()


def test_signed_with_both_secrets_while_they_are_rotated(
    database: Database, receiving: Receiver, sender: Sender
) -> None:
    new = signing.new_secret()
    held = signing.rotated(signing.first(SECRET), new, utc_now())
    put_out(database, an_endpoint(database, receiving.url, secrets=held))
    [request] = receiving.wait(1)
    assert request.verified(SECRET) == request.verified(new)


def test_a_name_that_turns_inward_is_never_called(database: Database, quick: Settings) -> None:
    turns = Addresses(look_up=lambda host, port: ["127.0.0.1"])
    sender = Sender(quick, database, turns)
    with hostile.forbidden_listener() as (port, callers):
        put_out(database, an_endpoint(database, f"https://hooks.example:{port}/"))
        sender.start()
        wait_for(lambda: rows(database)[0].status == "failed")
        sender.stop()
        assert callers == []
    assert rows(database)[0].attempts == 10


def test_the_links_start_with_the_public_url(database: Database, quick: Settings, receiving: Receiver) -> None:
    job = submitted(database, webhook_url=receiving.url)
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, job.id))
    public = quick.model_copy(update={"public_url": "https://secateur.example/"})
    sender = Sender(public, database, Addresses(allow_private=True, look_up=at_loopback))
    sender.start()
    [request] = receiving.wait(1)
    sender.stop()
    assert hostile.body_of(request)["data"]["links"]["self"] == f"https://secateur.example/v1/jobs/{job.id}"


def test_the_loop_outlives_errors(
    database: Database, quick: Settings, receiving: Receiver, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.webhooks.sender._AFTER_FAILURE", 0.02)
    sender = Sender(quick, database, addresses)
    looks: list[int] = []
    look = sender._due

    def failing() -> list[deliveries.Due]:
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError("database gone")
        return look()

    sender._due = failing  # type: ignore[method-assign]
    put_out(database, an_endpoint(database, receiving.url))
    sender.start()
    receiving.wait(1)
    sender.stop()
    assert len(looks) >= 4


def test_stopping_waits_for_what_is_being_sent(database: Database, quick: Settings, receiving: Receiver) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        hostile.status(204)(handler)

    receiving.plan = [slowly]
    sender = Sender(quick, database, Addresses(allow_private=True, look_up=at_loopback))
    sender.start()
    put_out(database, an_endpoint(database, receiving.url))
    wait_for(lambda: len(receiving.requests) == 1)
    sender.stop()
    assert rows(database)[0].status == "succeeded"
    with database.session_scope(read_only=True) as session:
        assert not session.get_one(WebhookDelivery, rows(database)[0].id).leased
