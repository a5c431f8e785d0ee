"""A worker that hears its rings, and one that does not."""

import json
from typing import Any

import pytest
from celery.worker import state
from celery.worker.request import Request
from kombu.message import Message

from service.broker import ENTRY, make_celery
from workers.app import app, run_job
from workers.consumer import RETRY_SECONDS, Hearing, SteadyConsumer, as_ring


def heard(body: bytes, kind: str = "application/json", headers: Any = None, **properties: Any) -> Message:
    """A message as it comes from the broker."""
    return Message(body=body, content_type=kind, headers=headers, properties=properties)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (heard(b'[["job_A"], {}, {}]', headers={"task": ENTRY, "id": "job_A"}), "job_A"),
        (heard(b"\x80\x04", "application/x-python-serialize", {"task": "os.system", "id": "job_A"}), "job_A"),
        (heard(b"", headers={"id": "job_A", "timelimit": [0.1, 0.1], "eta": "2999-01-01", "group": "g"}), "job_A"),
        (heard(b"", headers={"id": "job_A", "compression": "gzip"}, reply_to="mine", priority=9), "job_A"),
        (heard(b"", headers={"id": "a\nCRITICAL forged"}), "unknown"),
        (heard(b"", headers={"id": ["job_A"]}), "unknown"),
        (heard(b""), "unknown"),
    ],
)
def test_whatever_a_message_says_it_is_a_ring(message: Message, named: str) -> None:
    sound = app.amqp.as_task_v2(named, ENTRY, args=[named])
    ring = as_ring(app, message)
    assert json.loads(ring.body) == json.loads(json.dumps(sound.body))
    assert (ring.content_type, ring.headers, ring.properties) == ("application/json", sound.headers, sound.properties)
    assert Request(ring, app=app, task=run_job, headers=ring.headers, body=ring.body, decoded=False).time_limits == [
        None, None,
    ]  # fmt: skip


def a_request() -> Request:
    """A ring that was taken."""
    sent = app.amqp.as_task_v2("job_A", ENTRY, args=["job_A"])
    message = Message(body=sent.body, headers=sent.headers)  # type: ignore[no-untyped-call]
    return Request(message, app=app, task=run_job, decoded=True)


def test_a_ring_that_lies_unheard_at_every_look_tells_that_the_worker_is_deaf() -> None:
    waiting: set[str] | None = {"a"}
    hearing = Hearing(lambda: waiting, seconds=30)
    assert [hearing.is_lost(now) for now in (0, 10, 29)] == [False] * 3
    assert hearing.is_lost(30)


@pytest.mark.parametrize("between", [set(), None, {"b"}])
def test_rings_that_come_and_go_tell_nothing(between: set[str] | None) -> None:
    looks = iter([{"a"}, between, {"a"}, {"a"}])
    hearing = Hearing(lambda: next(looks), seconds=30)
    assert [hearing.is_lost(now) for now in (0, 29, 31, 60)] == [False] * 4


def test_a_worker_that_has_a_job_need_not_hear() -> None:
    hearing, request = Hearing(lambda: {"a"}, seconds=30), a_request()
    state.reserved_requests.add(request)
    assert [hearing.is_lost(now) for now in (0, 60, 120)] == [False] * 3
    state.reserved_requests.discard(request)
    assert [hearing.is_lost(now) for now in (121, 150, 151)] == [False, False, True]


def test_the_broker_is_asked_for_as_often_after_an_hour_as_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 50:
            raise StopIteration

    monkeypatch.setattr("kombu.utils.functional.sleep", pause)
    consumer = object.__new__(SteadyConsumer)
    consumer.app, consumer.first_connection_attempt = make_celery("redis://127.0.0.1:1/0"), False
    consumer.broker_connection_retry_attempt = 0
    with pytest.raises(StopIteration), consumer.app.connection_for_read() as conn:
        consumer.ensure_connected(conn)
    assert consumer.broker_connection_retry_attempt >= 0.6 * sum(pauses) / RETRY_SECONDS
