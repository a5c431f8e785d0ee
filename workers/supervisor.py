"""Attempts at jobs, one after the other: claim, stage inputs, run the engine, publish, finish."""

import errno
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import jobs, logs
from service.broker import Broker
from service.checkpoints import prefix_of as checkpoints_of
from service.config import Settings
from service.db import DATABASE_AWAY, Database
from service.errors import InsufficientStorage, Unavailable
from service.jobs import Claim
from service.storage import Storage, open_storage
from service.tables import Job
from workers.checkpoints import Keeper, bring_back
from workers.deaths import death_of, no_sandbox, no_space
from workers.lease import Halt, JobFailed, Lease, Reason
from workers.publishing import Publication, artifact_prefix, publish
from workers.relay import Lines, Relay
from workers.sandbox import Engine, SandboxMissing, is_full, memory_of, settle
from workers.staging import Order, read_order, stage, work_folder

log = logging.getLogger(__name__)

ENGINE = (sys.executable, "-P", "-m", "workers.engine")
"""-P: the work folder holds what strangers made, so nothing may be imported from it."""

T = TypeVar("T")
Step: TypeAlias = Callable[[Session], bool]

_PUMP_SECONDS = 0.2
_RETRY_SECONDS = 1.0


def worker_name(pid: int) -> str:
    """How the worker whose main process is `pid` signs its claims."""
    return f"{socket.gethostname()}:{pid}"


def drain_file(scratch: Path, pid: int) -> Path:
    """The file by which a worker's main process tells its job process to give the job back.

    Containers that share the folder have names of their own, and often the same pid.
    """
    return scratch / f"drain-{worker_name(pid)}"


def run(settings: Settings, *, engine_command: Sequence[str] = ENGINE, worker_pid: int) -> None:
    """Make attempts at the jobs whose turn it is until there is nothing to be had."""
    settings = settle(settings) if settings.sandbox == "auto" else settings
    database = Database(settings.database)
    try:
        supervisor = Supervisor(database, open_storage(settings.storage), settings, engine_command, worker_pid)
        while supervisor.run():
            pass
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

    def run(self) -> bool:
        """Claim a job and make one attempt at it; False when there is none, or this worker has to leave."""
        held = None if self._drain.exists() else self._claim()
        if held is None:
            return False
        relay = Relay()
        order = self._order_of(held, relay)
        if order is None:
            return True
        timeout = float(order.configuration["timeout"])
        about = logs.about(job_id=held.job_id, attempt=held.attempt, tenant=held.tenant, request_id=order.request_id)
        holding = Lease(self._database, held, relay, self._settings, timeout=timeout, drain=self._drain)
        with about, holding as lease:
            log.info("Attempt %d at job %s begins", held.attempt, held.job_id)
            try:
                self._attempt(held, order, relay, lease)
            except Halt as halt:
                lease.stop()
                self._halted(held, relay, halt.reason)
            except JobFailed as failure:
                lease.stop()
                self._failed(held, relay, failure)
            except Exception:
                log.exception("The attempt at job %s met an error that it does not know", held.job_id)
                lease.stop()
                self._failed(held, relay, JobFailed("WORKER_ERROR", "The worker met an unknown error.", retryable=True))
        return True

    def _claim(self) -> Claim | None:
        lease, limit = self._settings.lease_seconds, self._settings.quota_running_jobs
        with self._database.session_scope() as session:
            return jobs.claim_next(session, self._worker, lease, limit)

    def _order_of(self, held: Claim, relay: Relay) -> Order | None:
        """The claimed job's order; None when it cannot be read, which fails the attempt and holds up no other job."""
        try:
            return self._persist(lambda session: read_order(session, held), read_only=True)
        except Exception:
            log.exception("The order of job %s cannot be read", held.job_id)
            self._failed(held, relay, JobFailed("WORKER_ERROR", "The job's order cannot be read.", retryable=True))
            return None

    def _attempt(self, held: Claim, order: Order, relay: Relay, lease: Lease) -> None:
        try:
            with work_folder(self._settings.scratch, held) as folder:
                stage(self._storage, folder, order, lease.check, checkpoint_seconds=self._settings.checkpoint_seconds)
                order = self._bring_back(folder, held, order, lease)
                with Keeper(self._storage, folder, held, order, self._note_of(held)) as keeper:
                    self._run_engine(folder, order, relay, lease, keeper)
                publication = publish(self._storage, folder, held, order, lease.check)
        except (InsufficientStorage, Unavailable, OSError) as error:
            log.exception("Job %s could not be staged or published", held.job_id)
            raise _storage_failure(error) from error
        lease.stop()
        self._finish(held, relay, publication)

    def _bring_back(self, folder: Path, held: Claim, order: Order, lease: Lease) -> Order:
        """The order with the checkpoint that the attempt really goes on from."""
        saved = order.checkpoint
        whole = bring_back(self._storage, folder, saved, lease.check)
        if saved is None or whole is saved:
            return order
        self._persist(lambda session: jobs.fall_back(session, held, saved, whole))
        origin = order.origin | {"resumed_from_checkpoint": whole is not None}
        return replace(order, checkpoint=whole, origin=origin)

    def _note_of(self, held: Claim) -> Callable[[dict[str, Any]], bool]:
        return lambda checkpoint: self._persist(lambda session: jobs.keep_checkpoint(session, held, checkpoint))

    def _run_engine(self, folder: Path, order: Order, relay: Relay, lease: Lease, keeper: Keeper) -> None:
        lines = Lines(relay.feed)
        engine = self._start_engine(folder, order, lines)
        try:
            while engine.pump(_PUMP_SECONDS):
                keeper.offer(relay.checkpoint)
                lease.check()
                if is_full(folder, self._settings):
                    raise no_space()
        except (Halt, JobFailed) as reason:
            self._let_save(engine, lease, reason)
            raise
        finally:
            code = engine.end(0)
            keeper.offer(relay.checkpoint)
        if bad := relay.malformed + lines.too_long:
            log.warning("Job %s reported %d malformed lines", lease.held.job_id, bad)
        if code != 0:
            log.warning("The engine of job %s ended with %d:\n%s", lease.held.job_id, code, engine.log())
            raise death_of(code, relay, engine.log(), memory_of(self._settings)) if engine.was_started else no_sandbox()

    def _start_engine(self, folder: Path, order: Order, lines: Lines) -> Engine:
        timeout = float(order.configuration["timeout"])
        try:
            return Engine(self._engine_command, folder, self._settings, lines.feed, timeout=timeout)
        except SandboxMissing as missing:
            log.error("There is no sandbox any more: %s", missing)
            raise no_sandbox() from missing

    def _let_save(self, engine: Engine, lease: Lease, reason: Halt | JobFailed) -> None:
        """Let the engine save what it has, unless nobody wants it; the lease is kept meanwhile."""
        halted = isinstance(reason, Halt)
        grace = self._settings.checkpoint_grace_seconds if halted else self._settings.kill_grace_seconds
        until = time.monotonic() + grace
        if not lease.is_given_up:
            engine.ask_to_leave()
            while engine.pump(_PUMP_SECONDS) and not lease.is_given_up and time.monotonic() < until:
                pass

    def _finish(self, held: Claim, relay: Relay, publication: Publication) -> None:
        def finish(session: Session) -> bool:
            return jobs.finish(
                session, held, publication.status, publication.result, publication.model, publication.artifacts
            ) or _has_finished(session, held)

        if not self._conclude(held, relay, finish):
            self._persist(lambda session: jobs.confirm_cancelled(session, held))
        self._clear_storage(held)

    def _failed(self, held: Claim, relay: Relay, failure: JobFailed) -> None:
        error, most = failure.error(), self._settings.max_attempts
        self._conclude(held, relay, lambda session: jobs.fail(session, held, error, most))
        self._clear_storage(held)

    def _halted(self, held: Claim, relay: Relay, reason: Reason) -> None:
        log.info("Job %s stops here: %s", held.job_id, reason)
        if reason == "draining":
            if self._conclude(held, relay, lambda session: jobs.give_back(session, held)):
                Broker(self._settings.broker).ring(held.job_id)
        elif reason != "lost":
            self._conclude(held, relay, partial(_confirmed, held))
        self._clear_storage(held)

    def _conclude(self, held: Claim, relay: Relay, step: Step) -> bool:
        """What `step` says, with what the engine reported last stored before it in the same transaction."""
        pending = relay.take()

        def both(session: Session) -> bool:
            if jobs.beat(session, held, self._settings.lease_seconds, **pending.visible) is not None:
                pending.store(session, held)
            return step(session)

        return self._persist(both)

    def _clear_storage(self, held: Claim) -> None:
        """Remove what was published: by earlier attempts, which may have been killed, and by this one unless it won.

        Checkpoints go when nothing will go on from them.
        """
        try:
            finished = self._persist(lambda session: _has_finished(session, held))
            through = finished or self._persist(lambda session: _has_ended(session, held, "cancelled"))
            for token in range(1, held.token + 1):
                if token < held.token or not finished:
                    self._storage.delete_prefix(artifact_prefix(held.job_id, token))
                if through:
                    self._storage.delete_prefix(f"{checkpoints_of(held.job_id)}/{token}")
        except Exception:
            log.exception("Files of earlier attempts at job %s were left in storage", held.job_id)

    def _persist(self, step: Callable[[Session], T], *, read_only: bool = False) -> T:
        """Run one transaction, again while the database is away; gives up only when this worker has to leave."""
        while True:
            try:
                with self._database.session_scope(read_only=read_only) as session:
                    return step(session)
            except DATABASE_AWAY as error:
                log.warning("The database is away (%s); trying again", type(error).__name__)
                if self._drain.exists():
                    raise
                time.sleep(_RETRY_SECONDS)


def _confirmed(held: Claim, session: Session) -> bool:
    """Whether the job stands still, as it was asked to."""
    return jobs.confirm_paused(session, held) or jobs.confirm_cancelled(session, held)


def _has_finished(session: Session, held: Claim) -> bool:
    """Whether this attempt has finished the job: a commit can succeed though its answer was lost."""
    return _has_ended(session, held, "succeeded", "rejected")


def _has_ended(session: Session, held: Claim, *statuses: str) -> bool:
    ended = select(Job.id).where(Job.id == held.job_id, Job.token == held.token, Job.status.in_(statuses))
    return session.scalar(ended) is not None


def _storage_failure(error: Exception) -> JobFailed:
    full = isinstance(error, InsufficientStorage) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full:
        return no_space()
    return JobFailed("STORAGE_ERROR", "The storage could not be read or written.", "transient", retryable=True)
