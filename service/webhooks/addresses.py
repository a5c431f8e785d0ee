"""Which network addresses a webhook may be sent to: public ones, checked before every connection.

A name is resolved here, once per send, and the connection goes to the very address that passed: between the check and
the use no second answer of a name server can come. All addresses of a name must pass, so that none hides among others.
"""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

LookUp: TypeAlias = Callable[[str, int], list[str]]

LOOK_UP_SECONDS = 3.0
_LOOK_UPS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="webhook-dns")

# `is_global` alone is not enough: it holds for multicast, for 6to4 and for NAT64, which lead to any IPv4 address.
_PUBLIC6 = ip_network("2000::/3")
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_PRIVATE = tuple(
    ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")
)
_METADATA = frozenset(ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254"))
"""Credentials of the machine itself, at addresses that count as private; 169.254.169.254 is in no list above."""


class AddressRefused(Exception):
    """The URL leads where this service does not send; the text says what to change, not where it leads."""


class NameUnknown(Exception):
    """The host's name has no address now."""


def look_up(host: str, port: int) -> list[str]:
    """Addresses of a host, by the system's resolver, within a few seconds. Raises `NameUnknown`."""
    try:
        answer = _LOOK_UPS.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM).result(LOOK_UP_SECONDS)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise NameUnknown from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answer))


def is_allowed(address: str, *, allow_private: bool) -> bool:
    """Whether this service may connect to an address, given as text."""
    try:
        ip = ip_address(address)
    except ValueError:  # a scope, as link-local addresses have one, or no address at all
        return False
    if any(ip in network for network in _PRIVATE):
        return allow_private and ip not in _METADATA
    return _is_public(ip)


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in _PUBLIC6:
        return False
    return ip.is_global and not any(ip in network for network in _NOT_PUBLIC)


class Addresses:
    """The check with its settings; `look_up` is the only resolver that it asks."""

    def __init__(self, *, allow_private: bool = False, look_up: LookUp = look_up) -> None:
        self._allow_private = allow_private
        self._look_up = look_up

    def of(self, url: str) -> list[str]:
        """Addresses to connect to for a well-formed URL. Raises `AddressRefused` and `NameUnknown`."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not self._allow_private:
            raise AddressRefused("Give an https URL.")
        assert parts.hostname is not None
        found = self._look_up(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        if not found:
            raise NameUnknown
        if not all(is_allowed(address, allow_private=self._allow_private) for address in found):
            raise AddressRefused("The host must be reachable at public addresses only.")
        return found

    def refusal(self, url: str | None) -> str | None:
        """Why a URL is refused at the door. A name without an address is not: it is asked again at every send."""
        try:
            if url is not None:
                self.of(url)
        except AddressRefused as error:
            return str(error)
        except NameUnknown:
            pass
        return None
