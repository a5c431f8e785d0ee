"""How fast a key may ask, and how often an address may come with a wrong key: token buckets in this process's memory.

Each API process counts for itself, so that a request costs no query and no network: behind N processes a key gets at
most N times its rate, and a restart fills the buckets. What must hold exactly, and outlive a restart, is a quota.
"""

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.config import Settings
from service.errors import TooManyRequests
from service.quotas import limits_of

WINDOW = 60.0
"""Seconds in which an empty bucket fills."""

HEADERS = "secateur_rate_headers"
"""Where a request's scope holds the headers for its answer."""

_LIMIT_SECONDS = 10.0
"""How long a tenant's limit is believed before it is read again."""

_MOST_BUCKETS = 10_000
_IPV6_PREFIX = 64
"""One subscriber has all addresses of such a network."""


@dataclass(frozen=True)
class Taken:
    """What became of one request: `wait` is null when it may pass, else seconds until the next one may."""

    quota: int
    remaining: int
    full_in: float
    wait: float | None

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers, as structured fields."""
        return {
            "RateLimit-Policy": f'"default";q={self.quota};w={WINDOW:.0f}',
            "RateLimit": f'"default";r={self.remaining};t={math.ceil(self.full_in)}',
        }


class Buckets:
    """Token buckets by name: each holds a quota of tokens at most, and gains as many in every window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}

    def take(self, name: str, quota: int) -> Taken:
        """Take a token, if there is one."""
        pause = WINDOW / quota
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(name, now)) + pause
            wait = full_at - now - WINDOW
            if wait > 1e-6:  # a quota that divides no window evenly must not lose its last token to rounding
                return Taken(quota, 0, full_at - pause - now, wait)
            if len(self._full_at) >= _MOST_BUCKETS:
                self._full_at = {other: at for other, at in self._full_at.items() if at > now}
            self._full_at[name] = full_at
        return Taken(quota, math.floor((WINDOW - full_at + now) / pause + 1e-6), full_at - now, None)

    def __len__(self) -> int:
        return len(self._full_at)


class Rates:
    """The buckets of one API process, and what its tenants' limits are."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._keys, self._failures = Buckets(clock), Buckets(clock)
        self._limits: dict[str, tuple[float, int | None]] = {}

    def limit_of(self, session: Session, tenant: str) -> int | None:
        """Requests per minute of each key of a tenant; None: as many as it likes. Read every ten seconds at most."""
        known = self._limits.get(tenant)
        if known is None or known[0] <= self._clock():
            known = (self._clock() + _LIMIT_SECONDS, limits_of(session, self._settings, tenant).requests_per_minute)
            self._limits[tenant] = known
        return known[1]

    def take(self, key_id: str, limit: int) -> Taken:
        """Count a request of a key."""
        return self._keys.take(key_id, limit)

    def note_failure(self, address: str) -> None:
        """Count a wrong key. Raises `TooManyRequests` when too many came from that address.

        Right keys pass all the same: one broken client must not lock out all others behind its proxy.
        """
        taken = self._failures.take(_network(address), self._settings.failed_authentications_per_minute)
        if taken.wait is not None:
            raise too_many("Too many wrong keys came from this address.", "TOO_MANY_FAILURES", taken.wait)


def too_many(detail: str, code: str, seconds: float) -> TooManyRequests:
    """429 that tells when to come back."""
    after = max(1, math.ceil(seconds))
    headers = {"Retry-After": str(after)}
    return TooManyRequests(detail, code=code, headers=headers, extra={"retry_after": after})


def _network(address: str) -> str:
    """The address that failures are counted under."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)
