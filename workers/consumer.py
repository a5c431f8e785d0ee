"""How a worker listens for rings: whatever a message says, it is one and no more. It comes back soon after the broker
does, and leaves when it has gone deaf."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.message import Message
from kombu.serialization import dumps

from service.broker import ENTRY

log = logging.getLogger(__name__)

DEAF = 3
"""Exit code of a worker that heard nothing of what was rung for; whatever started it starts it again."""
RETRY_SECONDS = 2
_LOOKS = 10
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Celery's, that no message harms, and that knocks at the broker's door as often after an hour as at first."""

    loop: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = partial(_read, self.loop)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Celery's, that is shown rings alone."""
        handle = super().create_task_handler(*args, **kwargs)
        return lambda message: handle(as_ring(self.app, message))

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes; Celery's own pauses grow to half a minute."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=RETRY_SECONDS)
        return super().ensure_connected(conn)


def _read(loop: Callable[..., None], *args: Any) -> None:
    """Celery's loop, which would end the worker, and with it its job, at a message that cannot even be read."""
    try:
        loop(*args)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConnectionError(f"the broker sent what is no message ({type(error).__name__})") from error


def as_ring(app: Celery, message: Message) -> Message:
    """The message, of which nothing is left but that it came, and the job that it names.

    Celery would obey the rest of it: other tasks, time limits, tasks to be called next, a time to wait for.
    """
    said = message.headers.get("id")
    named = said if isinstance(said, str) and _ID.fullmatch(said) else "unknown"
    ring = app.amqp.as_task_v2(named, ENTRY, args=[named])
    message.headers, message.properties, message.delivery_info = ring.headers, ring.properties, {}
    message.content_type, message.content_encoding, message.body = dumps(ring.body, "json")  # type: ignore[no-untyped-call]
    return message


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
