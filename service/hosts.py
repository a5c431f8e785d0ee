"""For which hosts this service answers: a name that someone else makes point here must lead nowhere (DNS rebinding)."""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from service.config import Settings
from service.errors import BadRequest, Misdirected, SecateurError

ANY = "*"

_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{0,5})?")


class Hosts:
    """The names that a request's Host may have; `ANY` allows each that is well-formed."""

    def __init__(self, names: Iterable[str] = (ANY,)) -> None:
        self.names = frozenset(_plain(name) for name in names)

    @classmethod
    def of(cls, settings: Settings) -> "Hosts":
        """What the operator allows; without a word, only this machine's names for what only this machine reaches."""
        public = urlsplit(settings.public_url or "").hostname
        named = {public} if public else set()
        if settings.allowed_hosts is not None:
            return cls(named | {name for name in settings.allowed_hosts.split(",") if name.strip()})
        return cls(named | _THIS_MACHINE | {settings.host}) if is_loopback(settings.host) else cls()

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> SecateurError | None:
        """The error for a request with these headers; one without Host, as old health checks send, is nobody's trap."""
        given = [value for name, value in headers if name == b"host"]
        if not given:
            return None
        match = _HOST.fullmatch(given[0])
        if len(given) > 1 or match is None:
            return BadRequest("Send one Host, a name or an address.", code="HOST_INVALID")
        if ANY in self.names or _plain(match["name"].decode()) in self.names:
            return None
        return Misdirected("The service does not go by that name; its operator can allow it in SECATEUR_ALLOWED_HOSTS.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _plain(name: str) -> str:
    return name.strip().lower().strip("[]").rstrip(".")
