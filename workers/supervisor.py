"""One attempt at one job: claim, stage inputs, run the engine, publish, finish."""

import errno
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import jobs
from service.broker import Broker
from service.config import Settings
from service.db import DATABASE_AWAY, Database
from service.errors import InsufficientStorage
from service.jobs import Claim
from service.storage import Storage, open_storage
from service.tables import Job
from workers.lease import Halt, JobFailed, Lease, Reason
from workers.publishing import Publication, artifact_prefix, publish
from workers.relay import Lines, Relay
from workers.sandbox import Engine
from workers.staging import Order, read_order, stage, work_folder

log = logging.getLogger(__name__)

ENGINE = (sys.executable, "-P", "-m", "workers.engine")
"""-P: the work folder holds what strangers made, so nothing may be imported from it."""

Step: TypeAlias = Callable[[Session], bool]

_PUMP_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


def worker_name(pid: int) -> str:
    """How the worker whose main process is `pid` signs its claims."""
    return f"{socket.gethostname()}:{pid}"


def drain_file(scratch: Path, pid: int) -> Path:
    """The file by which a worker's main process tells its job process to give the job back."""
    return scratch / f"drain-{pid}"


def run(job_id: str, settings: Settings, *, engine_command: Sequence[str] = ENGINE, worker_pid: int) -> None:
    """Do everything that a ring for `job_id` asks for; nothing when the job is not to be had."""
    database = Database(settings.database)
    try:
        supervisor = Supervisor(database, open_storage(settings.storage), settings, engine_command, worker_pid)
        supervisor.run(job_id)
    finally:
        database.dispose()


class Supervisor:
    """Runs attempts with the given database and storage."""

    def __init__(
        self, database: Database, storage: Storage, settings: Settings, engine_command: Sequence[str], worker_pid: int
    ) -> None:
        self._database, self._storage, self._settings = database, storage, settings
        self._engine_command = engine_command
        self._worker = worker_name(worker_pid)
        self._drain = drain_file(settings.scratch, worker_pid)

    def run(self, job_id: str) -> None:
        """Claim the job and make one attempt at it."""
        claimed = self._claim(job_id)
        if claimed is None:
            log.info("Job %s is not to be had; another worker was first, or it has ended", job_id)
            return
        held, order = claimed
        relay = Relay()
        timeout = float(order.configuration["timeout"])
        with Lease(self._database, held, relay, self._settings, timeout=timeout, drain=self._drain) as lease:
            try:
                self._attempt(held, order, relay, lease)
            except Halt as halt:
                lease.stop()
                self._halted(held, order, halt.reason)
            except JobFailed as failure:
                lease.stop()
                self._failed(held, relay, failure)
            except Exception:
                log.exception("The attempt at job %s met an error that it does not know", job_id)
                lease.stop()
                self._failed(held, relay, JobFailed("WORKER_ERROR", "The worker met an unknown error.", retryable=True))

    def _claim(self, job_id: str) -> tuple[Claim, Order] | None:
        with self._database.session_scope() as session:
            held = jobs.claim(session, job_id, self._worker, self._settings.lease_seconds)
            return None if held is None else (held, read_order(session, held))

    def _attempt(self, held: Claim, order: Order, relay: Relay, lease: Lease) -> None:
        try:
            with work_folder(self._settings.scratch, held) as folder:
                stage(self._storage, folder, order, lease.check)
                self._run_engine(folder, relay, lease)
                publication = publish(self._storage, folder, held, order, lease.check)
        except (InsufficientStorage, OSError) as error:
            log.exception("Job %s could not be staged or published", held.job_id)
            raise _storage_failure(error) from error
        lease.stop()
        self._finish(held, relay, publication)

    def _run_engine(self, folder: Path, relay: Relay, lease: Lease) -> None:
        lines = Lines(relay.feed)
        engine = Engine(self._engine_command, folder, self._settings, lines.feed)
        grace = self._settings.kill_grace_seconds
        try:
            while engine.pump(_PUMP_SECONDS):
                lease.check()
        except Halt as halt:
            grace = 0 if halt.reason == "lost" else grace
            raise
        finally:
            code = engine.end(grace)
        if bad := relay.malformed + lines.too_long:
            log.warning("Job %s reported %d malformed lines", lease.held.job_id, bad)
        if code != 0:
            log.warning("The engine of job %s ended with %d:\n%s", lease.held.job_id, code, engine.log())
            raise _death(code, relay)

    def _finish(self, held: Claim, relay: Relay, publication: Publication) -> None:
        def finish(session: Session) -> bool:
            return jobs.finish(
                session, held, publication.status, publication.result, publication.model, publication.artifacts
            ) or _has_finished(session, held)

        if not self._persist(self._with_reports(held, relay, finish)):
            self._persist(lambda session: jobs.confirm_cancelled(session, held))
        self._clear_storage(held)

    def _failed(self, held: Claim, relay: Relay, failure: JobFailed) -> None:
        error, most = failure.error(), self._settings.max_attempts
        self._persist(self._with_reports(held, relay, lambda session: jobs.fail(session, held, error, most)))
        self._clear_storage(held)

    def _halted(self, held: Claim, order: Order, reason: Reason) -> None:
        log.info("Job %s stops here: %s", held.job_id, reason)
        if reason == "draining" and self._persist(lambda session: jobs.give_back(session, held)):
            Broker(self._settings.broker).ring(held.job_id, order.priority)
        elif reason != "lost":
            self._persist(lambda session: jobs.confirm_cancelled(session, held))
        self._clear_storage(held)

    def _with_reports(self, held: Claim, relay: Relay, step: Step) -> Step:
        """`step`, with what the engine reported last stored before it in the same transaction."""
        pending = relay.take()

        def both(session: Session) -> bool:
            if jobs.beat(session, held, self._settings.lease_seconds, **pending.visible) is not None:
                pending.store(session, held)
            return step(session)

        return both

    def _clear_storage(self, held: Claim) -> None:
        """Remove what was published: by earlier attempts, which may have been killed, and by this one unless it won."""
        try:
            finished = self._persist(lambda session: _has_finished(session, held))
            for token in range(1, held.token if finished else held.token + 1):
                self._storage.delete_prefix(artifact_prefix(held.job_id, token))
        except Exception:
            log.exception("Files of earlier attempts at job %s were left in storage", held.job_id)

    def _persist(self, step: Step) -> bool:
        """Run one transaction, again while the database is away; gives up only when this worker has to leave."""
        while True:
            try:
                with self._database.session_scope() as session:
                    return step(session)
            except DATABASE_AWAY as error:
                log.warning("The database is away (%s); trying again", type(error).__name__)
                if self._drain.exists():
                    raise
                time.sleep(_RETRY_SECONDS)


def _has_finished(session: Session, held: Claim) -> bool:
    """Whether this attempt has finished the job: a commit can succeed though its answer was lost."""
    ended = select(Job.id).where(
        Job.id == held.job_id, Job.token == held.token, Job.status.in_(("succeeded", "rejected"))
    )
    return session.scalar(ended) is not None


def _storage_failure(error: Exception) -> JobFailed:
    full = isinstance(error, InsufficientStorage) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full:
        return JobFailed("NO_SPACE", "The worker's disk or the storage is full.", "transient", retryable=True)
    return JobFailed("STORAGE_ERROR", "The storage could not be read or written.", "transient", retryable=True)


def _death(code: int, relay: Relay) -> JobFailed:
    """Why an engine ended: by its own words if it had any, else by how it died."""
    if relay.error is not None:
        line = relay.error
        return JobFailed(line.code, line.message, line.blame, retryable=line.retryable)
    if code == -signal.SIGKILL:
        return JobFailed(
            "ENGINE_KILLED", "The engine was killed; it may be out of memory.", "transient", retryable=True
        )
    if -code in _CRASHES:
        return JobFailed("ENGINE_CRASHED", f"The engine crashed ({signal.Signals(-code).name}).", retryable=True)
    return JobFailed("ENGINE_ERROR", f"The engine ended with code {code}.")
