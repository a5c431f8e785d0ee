"""Whose clock counts: the database's, for leases; a process whose own clock differs says so and deletes nothing."""

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import db_epoch

TOLERATED_SECONDS = 60.0


def database_now(session: Session) -> float:
    """Seconds since 1970 by the database's clock."""
    now = session.scalar(select(db_epoch()))
    assert now is not None
    return float(now)


def fault_of(now: float) -> str | None:
    """What to say of this process's clock where the database's shows `now`; None when they agree well enough."""
    ahead = time.time() - now
    if abs(ahead) <= TOLERATED_SECONDS:
        return None
    return f"The clock of this process is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database's."


class Sight:
    """Whether leases may be judged: once the database has been in sight, its clock going evenly, for a whole lease.

    No worker can renew a lease while the database is away, so a lease that ran out then says nothing about the worker.
    """

    def __init__(self, lease_seconds: float, look_seconds: float) -> None:
        """`look_seconds` lie between two looks at the database."""
        self._lease, self._longest = lease_seconds, look_seconds + lease_seconds / 2
        self._seen: float | None = None
        self._since = 0.0

    def lose(self) -> None:
        """The database could not be reached."""
        self._seen = None

    def look(self, now: float) -> bool:
        """The database shows `now`. Whether that begins anew: it was away, or its clock was set."""
        anew = self._seen is None or not 0 <= now - self._seen <= self._longest
        if anew:
            self._since = now
        self._seen = now
        return anew

    @property
    def is_clear(self) -> bool:
        """Whether a worker that lives has had the time to renew its lease."""
        return self._seen is not None and self._seen - self._since >= self._lease
