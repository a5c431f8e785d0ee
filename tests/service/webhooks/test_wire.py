"""One send, against receivers that mean it well and receivers that do not."""

import asyncio
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from service.webhooks.addresses import Addresses
from service.webhooks.deliveries import Outcome
from service.webhooks.wire import READ_AT_MOST, Wire
from tests.service.webhooks import receiver as hostile
from tests.service.webhooks.conftest import at_loopback
from tests.service.webhooks.receiver import CERTIFICATE, Behaviour, Receiver, receiver

HEADERS = {"webhook-id": "evt_1"}


def post(url: str, addresses: Addresses, *, seconds: float = 20.0, verify: ssl.SSLContext | None = None) -> Outcome:
    """One send."""

    async def go() -> Outcome:
        async with Wire(addresses, seconds=seconds, verify=verify) as wire:
            return await wire.post(url, HEADERS, b'{"a":1}')

    return asyncio.run(go())


def test_the_request_is_as_the_receiver_expects_it(receiving: Receiver, addresses: Addresses) -> None:
    outcome = post(receiving.url, addresses)
    assert (outcome.status, outcome.error) == (204, None)
    assert 0 < outcome.seconds < 1
    [request] = receiving.requests
    assert (request.path, request.body) == ("/in?key=1", b'{"a":1}')
    assert request.headers["host"] == f"hooks.example:{receiving.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_1"
    assert "cookie" not in request.headers


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        (hostile.status(200), 200, None),
        (hostile.status(302, Location="http://hooks.example:1/"), 302, "redirected"),
        (hostile.status(404), 404, "refused"),
        (hostile.status(410), 410, "gone"),
        (hostile.status(500), 500, "refused"),
        (hostile.hang(1.5), None, "timeout"),
        (hostile.drip, None, "timeout"),
        (hostile.reset, None, "connection_lost"),
        (hostile.endless_headers, None, "not_http"),
        (hostile.nonsense, None, "not_http"),
    ],
)
def test_each_way_to_end_has_its_class(
    receiving: Receiver, addresses: Addresses, behaviour: Behaviour, status: int | None, error: str | None
) -> None:
    receiving.plan = [behaviour]
    outcome = post(receiving.url, addresses, seconds=1.0 if error == "timeout" else 20.0)
    assert (outcome.status, outcome.error) == (status, error)
    assert outcome.seconds < 20
    assert len(receiving.requests) == 1


@pytest.mark.parametrize("status", [200, 500])
def test_an_endless_body_is_hardly_read(receiving: Receiver, addresses: Addresses, status: int) -> None:
    sent: list[int] = []
    receiving.plan = [hostile.endless_body(status, sent)]
    outcome = post(receiving.url, addresses)
    assert (outcome.status, outcome.error) == (status, None if status == 200 else "refused")
    assert outcome.seconds < 20
    buffers = 16 << 20
    assert READ_AT_MOST <= sum(sent) < READ_AT_MOST + buffers


def test_a_status_counts_whatever_becomes_of_its_body(receiving: Receiver, addresses: Addresses) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        time.sleep(3)

    receiving.plan = [half]
    assert post(receiving.url, addresses, seconds=2.0).status == 200


@pytest.mark.parametrize(("given", "asked"), [("120", 120.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("-1", None)])
def test_a_receiver_that_is_busy_says_for_how_long(
    receiving: Receiver, addresses: Addresses, given: str, asked: float | None
) -> None:
    receiving.plan = [hostile.status(503, Retry_After=given), hostile.status(500, Retry_After=given)]
    assert post(receiving.url, addresses).retry_after == asked
    assert post(receiving.url, addresses).retry_after is None


def test_a_closed_port_and_an_unknown_name(addresses: Addresses) -> None:
    assert post("http://hooks.example:1/", addresses).error == "connect_failed"
    assert post("http://nowhere.invalid/", addresses).error == "name_unknown"


def test_the_next_address_is_tried_where_one_does_not_answer(receiving: Receiver) -> None:
    several = Addresses(allow_private=True, look_up=lambda host, port: ["127.0.0.2", "127.0.0.1"])
    assert post(receiving.url, several).status == 204


# Nothing internal


def test_a_name_that_turns_inward_between_door_and_send_reaches_nothing() -> None:
    answers = iter([["93.184.215.14"], ["127.0.0.1"], ["93.184.215.14", "169.254.169.254"]])
    checked = Addresses(look_up=lambda host, port: next(answers))
    with hostile.forbidden_listener() as (port, callers):
        url = f"https://hooks.example:{port}/"
        assert checked.refusal(url) is None
        assert [post(url, checked).error for _ in range(2)] == ["address_refused"] * 2
        assert callers == []


def test_the_name_is_asked_for_once_a_send_and_never_by_the_connection(
    receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(host: str, port: int) -> list[str]:
        asked.append(host)
        return at_loopback(host, port)

    elsewhere: list[str] = []
    system = socket.getaddrinfo

    def listen_in(host: str, *rest: Any, **named: Any) -> Any:
        elsewhere.append(host)
        return system(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", listen_in)
    assert post(receiving.url, Addresses(allow_private=True, look_up=note)).status == 204
    assert asked == ["hooks.example"]
    assert set(elsewhere) <= {"127.0.0.1"}


def test_a_redirect_inward_is_not_followed(receiving: Receiver, addresses: Addresses) -> None:
    with hostile.forbidden_listener() as (port, callers):
        for code in (301, 302, 303, 307, 308):
            receiving.plan = [hostile.status(code, Location=f"http://127.0.0.1:{port}/")]
            assert post(receiving.url, addresses).error == "redirected"
        assert callers == []


def test_proxies_of_the_environment_are_not_used(
    receiving: Receiver, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile.forbidden_listener() as (port, callers):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        assert post(receiving.url, addresses).status == 204
        assert callers == []


# TLS


def trusting() -> ssl.SSLContext:
    """Trusts the tests' certificate alone."""
    return ssl.create_default_context(cafile=str(CERTIFICATE))


def test_the_certificate_must_be_the_names_though_the_connection_goes_to_an_address(addresses: Addresses) -> None:
    with receiver(tls=True) as listening:
        url = f"https://hooks.example:{listening.port}/"
        assert post(url, addresses, verify=trusting()).status == 204
        assert post(url, addresses).error == "tls_failed", "an unknown authority"
        other = f"https://other.example:{listening.port}/"
        assert post(other, addresses, verify=trusting()).error == "tls_failed", "the certificate of another name"
        assert len(listening.requests) == 1
