"""Slow, greedy and malformed connections over real sockets, with short limits."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.config import Settings
from tests.listening import Listening, bearer, listening, standalone

HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SHORT: dict[str, Any] = {
    "header_timeout_seconds": 0.6,
    "body_timeout_seconds": 0.6,
    "answer_timeout_seconds": 1.0,
    "max_header_bytes": 4096,
    "max_connections": 40,
    "max_connections_per_address": 20,
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Settings:
    """Settings of an API with little patience."""
    return standalone(tmp_path_factory.mktemp("impatient"), sqlite_template, **SHORT)


@pytest.fixture(scope="module")
def api(impatient: Settings) -> Iterator[Listening]:
    """The API that all tests of the module share."""
    with listening(impatient) as service:
        yield service


def post(settings: Settings, path: str, kind: str, size: int) -> bytes:
    """The head of a request with a body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer(settings)['Authorization']}\r\n"
    return f"{head}Content-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode()


def connect(api: Listening, data: bytes = b"") -> socket.socket:
    """A connection on which `data` was sent."""
    connection = socket.create_connection(("127.0.0.1", api.port), timeout=5)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that the service sends until it closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def problem(received: bytes) -> tuple[int, str]:
    """Status and code of the last answer."""
    head, _, body = received.rpartition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"x-request-id: req_" in head.lower()
    return int(head.split()[1]), json.loads(body)["code"]


def trickle(connection: socket.socket, data: bytes, pause: float) -> None:
    """Send a byte now and then, until the service has had enough."""
    try:
        for number in range(len(data)):
            connection.sendall(data[number : number + 1])
            time.sleep(pause)
    except OSError:
        pass


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD, b"\r\n"], ids=["nothing", "a word", "no end", "a blank line"])
def test_headers_that_do_not_come(api: Listening, sent: bytes) -> None:
    started = time.monotonic()
    with connect(api, sent) as connection:
        assert problem(answer(connection)) == (408, "REQUEST_TIMEOUT")
    assert 0.4 < time.monotonic() - started < 3


def test_headers_that_trickle(api: Listening) -> None:
    started = time.monotonic()
    with connect(api, HEAD) as connection:
        trickle(connection, b"X-Slow: " + b"a" * 100, 0.05)
    assert time.monotonic() - started < 3


def test_blank_lines_after_an_answer_keep_no_connection_alive(api: Listening) -> None:
    started = time.monotonic()
    with connect(api, HEAD + b"\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        trickle(connection, b"\r\n" * 50, 0.05)
    assert time.monotonic() - started < 3


def test_a_body_that_does_not_come(api: Listening, impatient: Settings) -> None:
    with connect(api, post(impatient, "/v1/jobs", "application/json", 1000) + b"{") as connection:
        assert problem(answer(connection)) == (408, "REQUEST_TIMEOUT")


def test_a_body_that_is_still_awaited_after_its_refusal(api: Listening) -> None:
    with connect(api, b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{") as connection:
        assert problem(answer(connection).partition(b"\r\n0\r\n")[0]) == (404, "NOT_FOUND")


def test_a_body_that_keeps_coming_is_taken(api: Listening, impatient: Settings) -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1024)
            time.sleep(0.1)

    headers = {**bearer(impatient), "Content-Type": "application/json"}
    with httpx.Client(trust_env=False) as client:
        refused = client.post(f"{api.url}/v1/jobs", content=slowly(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "MALFORMED_JSON")


@pytest.mark.parametrize(
    "headers",
    [b"X-Long: " + b"a" * 5000, b"\r\n".join(b"X-%d: a" % number for number in range(900)), b"a" * 20_000],
    ids=["one long", "many", "no end"],
)
def test_headers_beyond_the_limit(api: Listening, headers: bytes) -> None:
    end = b"" if b":" not in headers else b"\r\n\r\n"
    with connect(api, HEAD + headers + end) as connection:
        assert problem(answer(connection)) == (431, "HEADERS_TOO_LARGE")


def test_a_long_address_is_too_large(api: Listening) -> None:
    with connect(api, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert problem(answer(connection)) == (431, "HEADERS_TOO_LARGE")


def test_an_answer_that_nobody_reads(api: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(api.app, "middleware_stack", endless)
    with connect(api, HEAD + b"\r\n") as connection:
        time.sleep(2.5)
        received = answer(connection)
    assert 0 < len(received) < 100 << 20


def test_a_crowd_of_half_open_connections_shuts_nobody_out(api: Listening) -> None:
    with ExitStack() as crowd, httpx.Client(base_url=api.url, trust_env=False, timeout=2) as client:
        for _ in range(200):
            crowd.enter_context(connect(api, HEAD))
        times = [_timed(lambda: client.get("/healthz")) for _ in range(20)]
        assert sorted(times)[-2] < 0.5


def _timed(request: Callable[[], httpx.Response]) -> float:
    started = time.perf_counter()
    assert request().status_code == 200
    return time.perf_counter() - started


def test_busy_connections_are_not_closed_for_a_new_one(api: Listening, impatient: Settings) -> None:
    begun = post(impatient, "/v1/jobs", "application/json", 100_000) + bytes(5000)
    with ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(connect(api, begun))
        time.sleep(0.2)
        with connect(api) as late:
            assert problem(answer(late)) == (503, "UNAVAILABLE")
    with httpx.Client(base_url=api.url, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_problem(api: Listening, sent: bytes) -> None:
    with connect(api, sent) as connection:
        assert problem(answer(connection)) == (400, "HTTP_MALFORMED")


def test_an_upgrade_is_not_taken(api: Listening) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n\r\n"
    with connect(api, HEAD + upgrade) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_all_answered(api: Listening) -> None:
    last = HEAD + b"Connection: close\r\n\r\n"
    with connect(api, (HEAD + b"\r\n") * 5 + last) as connection:
        assert answer(connection).count(b"HTTP/1.1 200") == 6


@pytest.mark.parametrize(("trusted", "seen"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.9")])
def test_a_forwarded_address_is_believed_only_of_a_named_proxy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, trusted: str, seen: str
) -> None:
    with listening(settings.model_copy(update={"trusted_proxies": trusted})) as service:
        addresses: list[str] = []
        monkeypatch.setattr(service.app.state.rates, "note_failure", addresses.append)
        headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": "203.0.113.9"}
        assert httpx.get(f"{service.url}/v1/jobs", headers=headers, trust_env=False).status_code == 401
    assert addresses == [seen]
