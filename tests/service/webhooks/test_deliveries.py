"""The tries of a delivery: taken once, tried in time, given up in the end."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from service.config import Settings
from service.db import Database, db_epoch
from service.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint, utc_now
from service.webhooks import deliveries, outbox
from service.webhooks.deliveries import AT_ONCE_PER_ENDPOINT, Outcome, Parcel
from tests.databases import on_databases
from tests.service.webhooks.conftest import an_endpoint

URL = "https://hooks.example/in"
SCHEDULE = Settings().webhook_retry_seconds
TAKEN, REFUSED, GONE = Outcome(204, None, 0.1), Outcome(500, "refused", 0.1), Outcome(410, "gone", 0.1)


@pytest.fixture
def endpoint(database: Database) -> WebhookEndpoint:
    """An endpoint for all events."""
    return an_endpoint(database, URL)


def put_out(database: Database, endpoint: WebhookEndpoint) -> str:
    """A delivery that is due."""
    with database.session_scope() as session:
        return outbox.queue_test(session, endpoint).id


def take(database: Database, delivery_id: str, lease: float = 60) -> Parcel | None:
    """Claim a delivery."""
    with database.session_scope() as session:
        return deliveries.claim(session, delivery_id, lease)


def end(database: Database, parcel: Parcel, outcome: Outcome) -> None:
    """Note an outcome."""
    with database.session_scope() as session:
        deliveries.settle(session, parcel, outcome, SCHEDULE)


def try_(database: Database, delivery_id: str, outcome: Outcome) -> None:
    """One try, whenever it would be due."""
    with database.session_scope() as session:
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(due_at=0))
    parcel = take(database, delivery_id)
    assert parcel is not None
    end(database, parcel, outcome)


def row(database: Database, delivery_id: str) -> WebhookDelivery:
    """A delivery as it stands."""
    with database.session_scope(read_only=True) as session:
        return session.get_one(WebhookDelivery, delivery_id)


def endpoint_now(database: Database, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    """An endpoint as it stands."""
    with database.session_scope(read_only=True) as session:
        return session.get_one(WebhookEndpoint, endpoint.id)


def pause(database: Database, delivery_id: str) -> float:
    """Seconds until the next try, by the database's clock."""
    with database.session_scope(read_only=True) as session:
        query = select(WebhookDelivery.due_at - db_epoch()).where(WebhookDelivery.id == delivery_id)
        return float(session.execute(query).scalar_one())


def due_ids(database: Database, limit: int = 100) -> list[str]:
    """Ids of what is due."""
    with database.session_scope(read_only=True) as session:
        return [item.id for item in deliveries.due(session, limit)]


@on_databases
def test_of_many_that_want_it_one_takes_it(database: Database, endpoint: WebhookEndpoint) -> None:
    delivery_id = put_out(database, endpoint)
    won: list[Parcel | None] = []
    threads = [threading.Thread(target=lambda: won.append(take(database, delivery_id))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([parcel for parcel in won if parcel]) == 1
    assert due_ids(database) == []


@on_databases
def test_the_schedule_is_that_of_the_standard(database: Database, endpoint: WebhookEndpoint) -> None:
    assert SCHEDULE == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    delivery_id = put_out(database, endpoint)
    assert pause(database, delivery_id) <= 0, "the first try is at once"
    for planned in SCHEDULE:
        try_(database, delivery_id, REFUSED)
        assert planned - 2 <= pause(database, delivery_id) <= planned * 1.1
    assert row(database, delivery_id).status == "pending"
    try_(database, delivery_id, REFUSED)
    ended = row(database, delivery_id)
    assert (ended.status, ended.attempts) == ("failed", 10)
    assert ended.finished_at is not None
    assert due_ids(database) == []


def test_retries_of_many_are_spread(database: Database, endpoint: WebhookEndpoint) -> None:
    pauses = set()
    for _ in range(5):
        delivery_id = put_out(database, endpoint)
        try_(database, delivery_id, REFUSED)
        try_(database, delivery_id, REFUSED)
        pauses.add(round(pause(database, delivery_id)))
    assert len(pauses) > 1


@pytest.mark.parametrize(("asked", "waited"), [(600.0, 600), (1.0, 5), (1e9, 86400)])
def test_a_receiver_may_ask_for_more_time_up_to_a_day(
    database: Database, endpoint: WebhookEndpoint, asked: float, waited: float
) -> None:
    delivery_id = put_out(database, endpoint)
    try_(database, delivery_id, Outcome(503, "refused", 0.1, retry_after=asked))
    assert waited - 2 <= pause(database, delivery_id) <= waited * 1.1


@on_databases
def test_every_attempt_is_in_the_log(database: Database, endpoint: WebhookEndpoint) -> None:
    delivery_id = put_out(database, endpoint)
    try_(database, delivery_id, Outcome(None, "timeout", 15.0))
    try_(database, delivery_id, TAKEN)
    with database.session_scope(read_only=True) as session:
        log = list(session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.number)))
    told = [(one.number, one.response_status, one.error, one.seconds) for one in log]
    assert told == [(1, None, "timeout", 15.0), (2, 204, None, 0.1)]
    assert row(database, delivery_id).status == "succeeded"


@on_databases
def test_what_a_dead_process_held_comes_again_and_its_late_word_changes_nothing(
    database: Database, endpoint: WebhookEndpoint
) -> None:
    delivery_id = put_out(database, endpoint)
    late = take(database, delivery_id, lease=-1)
    assert late is not None and due_ids(database) == [delivery_id]
    second = take(database, delivery_id)
    assert second is not None and second.event_id == late.event_id
    end(database, late, GONE)
    held = row(database, delivery_id)
    assert (held.status, held.leased) == ("pending", True)
    assert endpoint_now(database, endpoint).enabled
    end(database, second, TAKEN)
    assert row(database, delivery_id).status == "succeeded"


def test_an_endpoint_that_is_gone_is_disabled_at_once(database: Database, endpoint: WebhookEndpoint) -> None:
    delivery_id, waiting = put_out(database, endpoint), put_out(database, endpoint)
    try_(database, delivery_id, GONE)
    now = endpoint_now(database, endpoint)
    assert (now.enabled, now.disabled_reason) == (False, "gone")
    assert row(database, delivery_id).status == "failed"
    assert row(database, waiting).status == "pending"
    assert due_ids(database) == [], "what waits for a disabled endpoint is not sent"


@on_databases
@pytest.mark.parametrize(("days", "enabled"), [(4.9, True), (5.1, False)])
def test_an_endpoint_that_failed_for_five_days_is_disabled(
    database: Database, endpoint: WebhookEndpoint, days: float, enabled: bool
) -> None:
    delivery_id = put_out(database, endpoint)
    try_(database, delivery_id, REFUSED)
    assert endpoint_now(database, endpoint).failing_since is not None
    with database.session_scope() as session:
        session.get_one(WebhookEndpoint, endpoint.id).failing_since = utc_now() - timedelta(days=days)
    try_(database, delivery_id, REFUSED)
    now = endpoint_now(database, endpoint)
    assert (now.enabled, now.disabled_reason) == (enabled, None if enabled else "failing")


def test_one_success_ends_the_failing(database: Database, endpoint: WebhookEndpoint) -> None:
    delivery_id = put_out(database, endpoint)
    try_(database, delivery_id, REFUSED)
    try_(database, delivery_id, TAKEN)
    assert endpoint_now(database, endpoint).failing_since is None


def test_the_endpoint_of_many_addresses_is_never_disabled(database: Database) -> None:
    shared = an_endpoint(database, None)
    delivery_id = put_out(database, shared)
    with database.session_scope() as session:
        session.get_one(WebhookDelivery, delivery_id).url = URL
    try_(database, delivery_id, GONE)
    now = endpoint_now(database, shared)
    assert (now.enabled, now.failing_since) == (True, None)
    assert row(database, delivery_id).status == "failed"


@on_databases
def test_no_endpoint_fills_the_list_of_what_is_due(database: Database, endpoint: WebhookEndpoint) -> None:
    crowd = [put_out(database, endpoint) for _ in range(10)]
    other = put_out(database, an_endpoint(database, URL))
    assert due_ids(database) == [*crowd[:AT_ONCE_PER_ENDPOINT], other]


@on_databases
def test_a_delivery_can_be_sent_again(database: Database, endpoint: WebhookEndpoint) -> None:
    delivery_id = put_out(database, endpoint)
    try_(database, delivery_id, GONE)
    event_id = row(database, delivery_id).event_id
    with database.session_scope() as session:
        session.get_one(WebhookEndpoint, endpoint.id).enabled = True
        outbox.queue_again(session, session.get_one(WebhookDelivery, delivery_id))
    again = take(database, delivery_id)
    assert again is not None
    assert (again.event_id, again.tries, again.attempt) == (event_id, 1, 2)
    with database.session_scope() as session:  # being sent just now: left alone
        outbox.queue_again(session, session.get_one(WebhookDelivery, delivery_id))
    assert due_ids(database) == []
    end(database, again, TAKEN)
    assert row(database, delivery_id).status == "succeeded"


@on_databases
def test_an_endpoint_may_be_deleted_while_it_is_sent_to(database: Database, endpoint: WebhookEndpoint) -> None:
    parcel = take(database, put_out(database, endpoint))
    assert parcel is not None
    with database.session_scope() as session:
        session.delete(session.get_one(WebhookEndpoint, endpoint.id))
    end(database, parcel, TAKEN)
    with database.session_scope(read_only=True) as session:
        assert list(session.scalars(select(WebhookAttempt))) == []
