"""Connections to PostgreSQL on which every wait ends, whatever becomes of the server, the network or this process."""

import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen

LOCK_SECONDS = 5
"""After this the server ends a statement that waits for another transaction."""
STATEMENT_SECONDS = 12
"""After this the server itself ends a statement, so that the connection stays good."""
ANSWER_SECONDS = 15.0
"""After this a connection is given up: a proxy, or a server that hangs, can take a question and never answer."""
IDLE_SECONDS = 30
"""After this the server takes back a transaction, with its locks, from a process that was stopped or cut off."""

_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}
_SERVER = {
    "lock_timeout": f"{LOCK_SECONDS}s",
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15s",
}


class BoundedConnection(psycopg.Connection[Any]):
    """Closes itself where an answer takes longer than `ANSWER_SECONDS`, and raises `psycopg.OperationalError`."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """What the driver does at each wait for the server; an own `timeout` of the driver's comes first."""
        began = time.monotonic()
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.OperationalError:
            if time.monotonic() - began >= ANSWER_SECONDS:
                self.close()  # a late answer would be taken for that to the next question
            raise


def connect(arguments: list[Any], options: dict[str, Any]) -> BoundedConnection:
    """A connection for SQLAlchemy's arguments of `psycopg.connect`, with those that bound it."""
    bounds = " ".join(f"-c {name}={value}" for name, value in _SERVER.items())
    given = {**_KEEPALIVES, **options, "options": f"{bounds} {options.get('options', '')}"}
    return BoundedConnection.connect(*arguments, **given)
