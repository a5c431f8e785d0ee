"""The right to work on one job: renewed by a thread, lost when another worker has it, given up on request."""

import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from service import jobs
from service.config import Settings
from service.db import DATABASE_AWAY, Database
from service.jobs import Claim
from workers.relay import Relay

log = logging.getLogger(__name__)

Reason: TypeAlias = Literal["lost", "cancelling", "pausing", "draining"]

_REASONS: dict[str | None, Reason | None] = {"running": None, "pausing": "pausing", "cancelling": "cancelling"}
"""What a job's status means to the worker that has it."""


class Halt(Exception):
    """The job must not go on here: it belongs to another worker, is cancelled or paused, or this worker is leaving."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class JobFailed(Exception):
    """The job's attempt has failed; the fields are those of the job's `error`."""

    def __init__(self, code: str, message: str, blame: str = "service", *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.blame, self.retryable = code, message, blame, retryable

    def error(self) -> dict[str, str | bool]:
        """As the job's `error`."""
        return {"code": self.code, "message": self.message, "blame": self.blame, "retryable": self.retryable}


class Lease:
    """Beats while the block runs, and writes what the relay has collected with each beat.

    While the database is away it keeps what is to be written and lets the job run on: only an answer of the database
    says that a lease is lost.
    """

    def __init__(
        self, database: Database, held: Claim, relay: Relay, settings: Settings, *, timeout: float, drain: Path
    ) -> None:
        """`timeout` in seconds bounds the attempt from now; `drain` is a file that appears when the worker leaves."""
        self.held = held
        self._database, self._relay, self._drain = database, relay, drain
        self._lease_seconds, self._heartbeat = settings.lease_seconds, settings.heartbeat_seconds
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._reason: Reason | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._thread.join()

    @property
    def is_given_up(self) -> bool:
        """Whether nothing of the attempt is wanted any more: the job is cancelled, or another worker's."""
        return self._reason in ("lost", "cancelling")

    def check(self) -> None:
        """Raises `Halt` when the work must stop, `JobFailed` when the job's time is over."""
        if self._reason is not None:
            raise Halt(self._reason)
        if self._drain.exists():
            raise Halt("draining")
        if time.monotonic() > self._deadline:
            raise JobFailed("TIMEOUT", f"The job ran longer than its timeout of {self._timeout:g} s.", "user")

    def _run(self) -> None:
        while not self._stop.wait(self._heartbeat):
            self.beat()

    def beat(self) -> None:
        """Renew the lease and write what is pending, in one transaction."""
        pending = self._relay.take()
        try:
            with self._database.session_scope() as session:
                status = jobs.beat(session, self.held, self._lease_seconds, **pending.visible)
                if status is not None:
                    pending.store(session, self.held)
        except DATABASE_AWAY as error:
            self._relay.put_back(pending)
            log.warning("The database is away (%s); job %s goes on", type(error).__name__, self.held.job_id)
        except Exception:
            log.exception("A beat of job %s failed; what it carried is dropped", self.held.job_id)
        else:
            self._reason = _REASONS.get(status, "lost")
