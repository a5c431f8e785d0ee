"""The doorbell on a real Valkey."""

import json
from types import SimpleNamespace

import pytest
from redis import Redis

from service.broker import CELERY_SETTINGS, ENOUGH_SECONDS, ENTRY, QUEUE, Broker
from service.embedded import EmbeddedBroker


def test_a_ring_is_one_json_message_that_carries_the_id_alone(broker_url: str, valkey_server: EmbeddedBroker) -> None:
    broker = Broker(broker_url)
    broker.ring("job_A")
    with Redis(unix_socket_path=str(valkey_server.socket)) as client:
        (message,) = [json.loads(raw) for raw in client.lrange(QUEUE, 0, -1)]
    broker.close()
    assert message["content-type"] == "application/json"
    assert (message["headers"]["id"], message["headers"]["task"]) == ("job_A", ENTRY)
    assert message["headers"]["argsrepr"] == "['job_A']"


def test_waiting_sees_every_ring(broker_url: str) -> None:
    broker = Broker(broker_url)
    assert broker.waiting() == set()
    for number in range(10):
        broker.ring(f"job_{number}")
    assert broker.waiting() == {f"job_{number}" for number in range(10)}
    broker.close()


def test_no_more_rings_lie_unheard_than_wake_every_worker(
    broker_url: str, valkey_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.broker.MOST_RINGS", 3)
    now = [0.0]
    monkeypatch.setattr("service.broker.time", SimpleNamespace(monotonic=lambda: now[0]))
    broker = Broker(broker_url)
    for number in range(5):
        broker.ring(f"job_{number}")
    assert broker.waiting() == {"job_0", "job_1", "job_2"}
    with Redis(unix_socket_path=str(valkey_server.socket)) as client:
        client.rpop(QUEUE)  # as a worker does that hears one
    broker.ring("job_5")
    assert broker.waiting() == {"job_1", "job_2"}, "enough lay there just now"
    now[0] += ENOUGH_SECONDS
    broker.ring("job_6")
    assert broker.waiting() == {"job_1", "job_2", "job_6"}
    broker.close()


def test_foreign_messages_are_no_jobs(broker_url: str, valkey_server: EmbeddedBroker) -> None:
    with Redis(unix_socket_path=str(valkey_server.socket)) as client:
        client.lpush(QUEUE, b"\xff", b"[]", b'{"headers": 3}')
    broker = Broker(broker_url)
    assert broker.waiting() == set()
    broker.close()


def test_a_broker_that_is_away_hinders_nobody(valkey_server: EmbeddedBroker) -> None:
    broker = Broker(f"redis+socket://{valkey_server.socket}.not-there?virtual_host=0")
    for number in range(100):
        broker.ring(f"job_{number}")
    assert broker.waiting() is None
    assert not broker.ping()
    broker.close()


def test_nothing_but_json_is_read_and_messages_are_acknowledged_early() -> None:
    assert CELERY_SETTINGS["accept_content"] == ["json"]
    assert CELERY_SETTINGS["task_acks_late"] is False
    assert CELERY_SETTINGS["worker_disable_prefetch"] is True
