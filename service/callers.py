"""Whom this process has just let in: a key in steady use is looked up twice a second, not at every request."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.auth import Principal

BELIEVED_SECONDS = 0.5
"""A key that another process revokes, or that expires, works so long at most: one second is promised."""

_MOST = 10_000


@dataclass(frozen=True)
class Caller:
    """Who asks, and how often a minute each key of the tenant may; None: as often as it likes."""

    principal: Principal
    limit: int | None


class Callers:
    """Callers by the header that they sent, of which only the SHA-256 is kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[float, Caller]] = {}

    def known(self, header: str) -> Caller | None:
        """Who has sent this `Authorization` just now."""
        until, caller = self._known.get(_digest(header), (0.0, None))
        return caller if self._clock() < until else None

    def keep(self, header: str, caller: Caller) -> None:
        """The header was looked up."""
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[_digest(header)] = (self._clock() + BELIEVED_SECONDS, caller)

    def forget(self, key_id: str) -> None:
        """The key was revoked, here: it does not work any more."""
        self._known = {digest: kept for digest, kept in self._known.items() if kept[1].principal.key_id != key_id}


def _digest(header: str) -> bytes:
    return hashlib.sha256(header.encode("utf-8", "surrogateescape")).digest()
