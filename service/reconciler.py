"""The loop that finds what was lost: leases, jobs that the broker forgot, abandoned uploads. Any number may run."""

import logging
import threading
import time

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service import checkpoints, clocks, idempotency, jobs, retention, turns
from service.auth import KeyUse
from service.broker import MOST_RINGS, Broker
from service.config import Settings
from service.db import Database
from service.intake import orphans, uploads
from service.storage import open_storage
from service.webhooks import outbox

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
"""Between two looks at all that is stored, which take long where much is."""


class Reconciler:
    """One daemon thread of the API process; outlives every error of the database and the broker."""

    def __init__(self, settings: Settings, database: Database, broker: Broker, key_use: KeyUse) -> None:
        self._settings, self._database, self._broker, self._key_use = settings, database, broker, key_use
        self._storage = open_storage(settings.storage)
        self._sight = clocks.Sight(settings.lease_seconds, settings.reconcile_seconds)
        self._next_sweep = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the turn that is running."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.turn()
            except Exception:
                log.exception("The reconciler's turn failed; the next one comes in time")
            self._stop.wait(self._settings.reconcile_seconds)
        try:
            self._note_key_use()
        except Exception:
            log.exception("The last use of some keys was not stored")

    def turn(self) -> None:
        """Free, ring, forget, let expire: once; at times also remove what nobody owns."""
        try:
            with self._database.session_scope() as session:
                now = clocks.database_now(session)
                due = self._free(session, now)
        except DBAPIError:  # not where connections are merely scarce
            self._sight.lose()
            raise
        self._ring(due)
        self._note_key_use()
        if fault := clocks.fault_of(now):
            log.error(fault)
        else:
            self._forget()

    def _free(self, session: Session, now: float) -> list[str]:
        """Take jobs from workers that have gone; returns the ids of those that are due."""
        if self._sight.look(now):
            jobs.clip_leases(session, self._settings.lease_seconds)
        if self._sight.is_clear:
            return jobs.reconcile(session, self._settings.max_attempts, self._settings.quota_running_jobs)
        return turns.due(session, self._settings.quota_running_jobs)

    def _forget(self) -> None:
        """Remove what has expired, by this process's clock."""
        with self._database.session_scope() as session:
            idempotency.expire(session)
            outbox.expire(session)
        uploads.sweep(self._database, self._storage, self._settings.scratch)
        retention.expire(self._database, self._storage)
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            for sweep in (orphans.sweep, orphans.sweep_artifacts, checkpoints.sweep):
                sweep(self._database, self._storage)
            retention.drop_checkpoints(self._database, self._storage, self._settings.checkpoint_expiry_seconds)

    def _ring(self, due: list[str]) -> None:
        waiting = self._broker.waiting() if due else None
        if waiting is None:
            return
        for job_id in [job_id for job_id in due if job_id not in waiting][: max(0, MOST_RINGS - len(waiting))]:
            self._broker.ring(job_id)

    def _note_key_use(self) -> None:
        if len(self._key_use):
            with self._database.session_scope() as session:
                self._key_use.flush(session)
