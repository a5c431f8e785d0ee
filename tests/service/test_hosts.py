"""Names that a request may be for."""

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.config import Settings
from service.hosts import Hosts, is_loopback

PUBLIC = "https://secateur.example.org:8443/api"


def _code(hosts: Hosts, *given: bytes) -> str | None:
    refusal = hosts.refusal([(b"accept", b"*/*"), *((b"host", value) for value in given)])
    return refusal.code if refusal else None


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8400", "localhost", "LocalHost:1", "localhost.", "[::1]:8400", "[::1]"]
)
def test_this_machines_names_are_allowed_by_default(host: str) -> None:
    assert _code(Hosts.of(Settings()), host.encode()) is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8400", "10.0.0.1"])
def test_other_names_are_not(host: str) -> None:
    assert _code(Hosts.of(Settings()), host.encode()) == "HOST_UNKNOWN"


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"a/b", b"a@b", b"[", b"[::1", b"]", b"a:b", b"a?b", b"a#b", b"\xff", b"a\\b", b"a:1:2"]
)
@pytest.mark.parametrize("hosts", [Hosts(), Hosts.of(Settings())], ids=["any", "own"])
def test_what_is_no_host_is_refused_even_where_any_is_allowed(hosts: Hosts, host: bytes) -> None:
    assert _code(hosts, host) == "HOST_INVALID"


def test_two_hosts_are_refused_and_none_is_not() -> None:
    own = Hosts.of(Settings())
    assert _code(own, b"localhost", b"localhost") == "HOST_INVALID"
    assert _code(own) is None


def test_the_public_name_is_allowed_beside_this_machines() -> None:
    hosts = Hosts.of(Settings(public_url=PUBLIC))
    assert _code(hosts, b"secateur.example.org") is None
    assert _code(hosts, b"localhost") is None
    assert _code(hosts, b"example.org") == "HOST_UNKNOWN"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box"])
def test_what_other_machines_reach_answers_to_any_name(host: str) -> None:
    assert _code(Hosts.of(Settings(host=host)), b"whatever.example") is None


def test_the_operator_decides() -> None:
    hosts = Hosts.of(Settings(allowed_hosts="a.example, B.example", public_url=PUBLIC, host="0.0.0.0"))
    assert [_code(hosts, name) for name in (b"a.example", b"b.example:1", b"secateur.example.org")] == [None] * 3
    assert _code(hosts, b"localhost") == "HOST_UNKNOWN"
    assert _code(Hosts.of(Settings(allowed_hosts="*")), b"evil.example") is None


def test_loopback_addresses_are_told_apart() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")] == [False] * 5


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/v1/models", "/nowhere"])
def test_a_rebound_name_reaches_nothing(settings: Settings, api_key: str, path: str) -> None:
    bearer = {"Authorization": f"Bearer {api_key}"}
    with TestClient(create_app(settings), base_url="http://rebound.example:8400", headers=bearer) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (421, "HOST_UNKNOWN")
    assert "rebound" not in answer.text
