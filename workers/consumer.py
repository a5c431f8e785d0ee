"""How a worker listens for rings: it comes back soon after the broker does, and leaves when it has gone deaf."""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer

log = logging.getLogger(__name__)

DEAF = 3
"""Exit code of a worker that heard nothing of what was rung for; whatever started it starts it again."""
RETRY_SECONDS = 2
_LOOKS = 10


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Celery's, that knocks at the broker's door as often after an hour as after a minute."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes; Celery's own pauses grow to half a minute."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=RETRY_SECONDS)
        return super().ensure_connected(conn)


def is_idle() -> bool:
    """Whether the worker of this process has no job, nor has taken a ring for one."""
    return not state.reserved_requests


class Hearing:
    """A thread that ends the worker when rings lie unheard while it has nothing to do.

    Connections have been seen to come back without their subscription; a new process always listens.
    """

    def __init__(self, waiting: Callable[[], set[str] | None], seconds: float) -> None:
        """`waiting` tells whose rings no worker has taken; one that lies for `seconds` is proof."""
        self._waiting, self._seconds = waiting, seconds
        self._since: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hearing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End: a worker that leaves hears nothing any more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds / _LOOKS):
            if self.is_lost(time.monotonic()):
                log.critical("This worker does not hear what is rung for; it leaves, to be started again")
                os._exit(DEAF)  # an orderly end would wait for what hangs

    def is_lost(self, now: float) -> bool:
        """Whether some ring has lain there at every look for long enough, though this worker was idle."""
        waiting = self._waiting() if is_idle() else None
        self._since = {job_id: self._since.get(job_id, now) for job_id in waiting or ()}
        return any(now - since >= self._seconds for since in self._since.values())
