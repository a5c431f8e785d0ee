"""Attacks on the service as it runs: two API processes and a worker on PostgreSQL and Valkey, over real sockets."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from sqlalchemy import select

from service.auth import issue_key, new_plaintext
from service.broker import QUEUE, make_celery
from service.callers import BELIEVED_SECONDS
from service.db import Database
from service.embedded import EmbeddedBroker
from service.processes import stop
from service.states import FINAL
from service.tables import Job
from tests.faults.conftest import make_settings
from tests.live import LiveService
from tests.security.messages import hostile
from tests.servers import PostgreSQL, valkey
from tests.service.samples import a_model, a_spec, store
from tests.uploads import bert_files, tar

HEADER_SECONDS = 2


class Patient(LiveService):
    """Processes that wait for headers for two seconds, with the caps of production."""

    @property
    def environment(self) -> dict[str, str]:
        """What the processes are told."""
        return super().environment | {"SECATEUR_HEADER_TIMEOUT_SECONDS": str(HEADER_SECONDS)}


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    """A broker of this module alone."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="module")
def pair(
    postgresql_server: PostgreSQL,
    postgresql_template: str,
    broker: EmbeddedBroker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Patient, Patient]]:
    """Two API processes over one database, and a worker."""
    url = postgresql_server.url(postgresql_server.create(postgresql_template))
    settings = make_settings(tmp_path_factory.mktemp("live"), url, broker.url)
    database = Database(url)
    with database.session_scope() as session:
        _, key = issue_key(session, tenant="default", name="live", scopes=["admin"])
    database.dispose()
    with Patient(settings, key) as first, Patient(settings, key) as second:
        first.start_api()
        second.start_api()
        first.start_worker()
        yield first, second


@pytest.fixture
def live(pair: tuple[Patient, Patient]) -> Patient:
    """The first of them, with the worker."""
    return pair[0]


def test_a_key_that_is_revoked_works_nowhere_a_second_later(pair: tuple[Patient, Patient]) -> None:
    here, elsewhere = pair
    made = here.client.post("/v1/keys", json={"name": "stolen", "scopes": ["read"]}).json()
    stolen = {"Authorization": f"Bearer {made['key']}"}
    for service in pair:
        assert service.client.get("/v1/jobs", headers=stolen).status_code == 200
    assert here.client.delete(f"/v1/keys/{made['id']}").status_code == 204
    revoked = time.monotonic()
    assert here.client.get("/v1/jobs", headers=stolen).status_code == 401
    elsewhere.wait_for(lambda: elsewhere.client.get("/v1/jobs", headers=stolen).status_code == 401, "it to be refused")
    assert BELIEVED_SECONDS <= 1 and time.monotonic() - revoked < 3


def test_a_forged_address_gets_no_more_tries_to_guess_a_key(live: Patient) -> None:
    def guess(number: int) -> int:
        forged = {"X-Forwarded-For": f"203.0.113.{number}", "X-Real-IP": "::1", "Forwarded": f"for=198.51.100.{number}"}
        headers = {"Authorization": f"Bearer {new_plaintext()}", **forged}
        return live.client.get("/v1/jobs", headers=headers).status_code

    answers = [guess(number) for number in range(100)]
    assert set(answers[:50]) == {401} and 429 in answers
    assert live.client.get("/v1/jobs").status_code == 200, "a right key passes all the same"


def test_an_api_that_dies_between_commit_and_answer_has_made_one_job(live: Patient, broker: EmbeddedBroker) -> None:
    spec = a_spec(store(live.database, a_model()).id)
    once = {"Idempotency-Key": "died", "Content-Type": "application/json"}
    assert broker.process is not None and live.api is not None
    broker.process.send_signal(signal.SIGSTOP)  # the ring after the commit, before the answer, now takes a second
    try:
        request = live.client.build_request("POST", "/v1/jobs", json=spec, headers=once)
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
            connection.sendall(_raw(request))
            live.wait_for(lambda: _jobs(live, spec["model_id"]), "the row")
            stop(live.api, grace=0, gently=signal.SIGKILL)
            assert _rest(connection) == b"", "it had answered already"
    finally:
        broker.process.send_signal(signal.SIGCONT)
    live.start_api()
    again = live.client.post("/v1/jobs", json=spec, headers=once)
    assert again.status_code == 202, again.text
    assert _jobs(live, spec["model_id"]) == [again.json()["id"]]


def _raw(request: httpx.Request) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{request.method} {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content


def _rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def _jobs(live: LiveService, model_id: str) -> list[str]:
    with live.database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Job.id).where(Job.model_id == model_id)))


def test_200_half_open_connections_slow_nobody_down_and_are_closed(live: Patient) -> None:
    quiet = sorted(_times(live, 50))
    with ExitStack() as crowd:
        held = [crowd.enter_context(_half_open(live.port, number)) for number in range(200)]
        began = time.monotonic()
        crowded = sorted(_times(live, 50))
        answers = [_all(connection) for connection in held]
        closed = time.monotonic() - began
    print(f"median {quiet[25]:.4f} s, among the crowd {crowded[25]:.4f} s; all closed after {closed:.1f} s")
    assert all(b"408" in answer for answer in answers)
    assert crowded[25] < 10 * max(quiet[25], 0.01)
    assert closed < 5 * HEADER_SECONDS


def _times(live: LiveService, count: int) -> Iterator[float]:
    for _ in range(count):
        started = time.perf_counter()
        assert live.client.get("/healthz").status_code == 200
        yield time.perf_counter() - started


def _half_open(port: int, number: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall([b"", b"POST /v1/jobs HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "][number % 3])
    return connection


def _all(connection: socket.socket) -> bytes:
    received = b""
    while piece := _rest(connection):
        received += piece
    return received


def test_no_message_is_code_and_none_stops_a_worker(live: Patient, broker: EmbeddedBroker, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert live.worker is not None
    with Redis(unix_socket_path=str(broker.socket)) as client:
        for name, sent in hostile(marker).items():
            client.lpush(QUEUE, sent)
            live.wait_for(lambda: client.llen(QUEUE) == 0, f"{name} to be taken")
    assert _succeeds(live) == "succeeded"
    assert live.worker.poll() is None and not marker.exists()


def test_nobody_commands_a_worker_through_the_broker(live: Patient, broker: EmbeddedBroker) -> None:
    assert live.worker is not None
    with make_celery(broker.url) as celery:
        for order, arguments in (("ping", {}), ("cancel_consumer", {"queue": QUEUE}), ("shutdown", {})):
            assert celery.control.broadcast(order, arguments=arguments, reply=True, timeout=0.5) == []
    assert _succeeds(live) == "succeeded"
    assert live.worker.poll() is None


def _succeeds(live: LiveService) -> str:
    """How a job ends that needs no network: single weights are zeroed from file to file."""
    sent = live.client.post(
        "/v1/models?name=tiny", content=tar(bert_files()), headers={"Content-Type": "application/x-tar"}
    )
    cut = {"structure": "weights", "ratio": 0.5, "pattern": "unstructured", "criterion": {"kind": "magnitude"}}
    spec: dict[str, Any] = {"name": "after", "model_id": sent.json()["id"], "task": "text-classification"}
    made = live.client.post("/v1/jobs", json={**spec, "pruning": {"cuts": [cut]}, "benchmark": None})
    assert made.status_code == 202, made.text

    def status() -> str:
        return str(live.client.get(f"/v1/jobs/{made.json()['id']}").json()["status"])

    live.wait_for(lambda: status() in FINAL, "the job to end", seconds=90)
    return status()
