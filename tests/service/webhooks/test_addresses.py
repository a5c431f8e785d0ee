"""Which addresses webhooks may go to."""

import socket
import time

import pytest

from service.webhooks import addresses as addresses_module
from service.webhooks.addresses import Addresses, AddressRefused, NameUnknown, is_allowed, look_up

PUBLIC = ("93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:82f::200e")
PRIVATE = ("127.0.0.1", "127.255.1.2", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1")
NEVER = (
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "hooks.example",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert is_allowed(address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_pass_only_where_they_are_allowed(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert is_allowed(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_what_is_neither_never_passes(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert not is_allowed(address, allow_private=True)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost", "[::1]", "127.0.0.1"])
def test_no_spelling_of_this_machine_passes(host: str) -> None:
    with pytest.raises(AddressRefused):
        Addresses().of(f"https://{host}/")


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    checked = Addresses(look_up=lambda host, port: [PUBLIC[0], "127.0.0.1"])
    assert checked.refusal("https://hooks.example/") == "The host must be reachable at public addresses only."


def test_http_is_for_private_networks() -> None:
    asked: list[tuple[str, int]] = []

    def note(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["10.0.0.1"]

    assert Addresses(look_up=note).refusal("http://hooks.example/") == "Give an https URL."
    assert asked == []
    assert Addresses(allow_private=True, look_up=note).of("http://hooks.example/") == ["10.0.0.1"]
    assert Addresses(allow_private=True, look_up=note).of("https://hooks.example:8443/") == ["10.0.0.1"]
    assert asked == [("hooks.example", 80), ("hooks.example", 8443)]


def test_a_name_without_an_address_is_no_reason_to_refuse_it_at_the_door() -> None:
    assert Addresses(look_up=lambda host, port: []).refusal("https://hooks.example/") is None
    with pytest.raises(NameUnknown):
        Addresses(look_up=lambda host, port: []).of("https://hooks.example/")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64 + ".example", "a..example"])
def test_names_that_cannot_be_resolved_are_unknown(host: str) -> None:
    with pytest.raises(NameUnknown):
        look_up(host, 443)


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses_module, "LOOK_UP_SECONDS", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.5))
    started = time.monotonic()
    with pytest.raises(NameUnknown):
        look_up("slow.example", 443)
    assert time.monotonic() - started < 0.4
