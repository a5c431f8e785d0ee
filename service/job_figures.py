"""Counters and histograms of jobs, from the attempts that any worker made.

A process counts what it sees happen in the tables from its start on, as any Prometheus counter does; all processes see
the same. Totals of the tables themselves would not do: deleting one job would look like a restart of the counter.
"""

from datetime import datetime, timedelta
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy import Row, Select, or_, select
from sqlalchemy.orm import Session

from service.ids import earliest
from service.states import FINAL, Phase
from service.tables import Attempt, Event, Job, utc_now

OVERLAP = timedelta(minutes=5)
"""How far back a look reaches beyond the last one: clocks of hosts differ, and a row is seen only once committed."""

_WAITS = (0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_RUNS = (5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 43200.0, 86400.0)


class JobFigures:
    """What happened to jobs since `begin`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._since = utc_now()
        self._seen: dict[tuple[str, str, int], datetime] = {}
        self._waits = Histogram(
            "secateur_job_queue_wait_seconds",
            "Time from the submission of a job to its first start.",
            buckets=_WAITS,
            registry=registry,
        )
        self._runs = Histogram(
            "secateur_job_run_seconds",
            "Time that the last attempt at an ended job took, by the status it ended in.",
            ["status"],
            buckets=_RUNS,
            registry=registry,
        )
        self._phases = Counter(
            "secateur_job_phase_seconds", "Time that finished jobs spent in each phase.", ["phase"], registry=registry
        )
        self._failures = Counter("secateur_job_failures", "Jobs that failed.", ["code"], registry=registry)
        self._attempts = Counter(
            "secateur_job_attempts", "Attempts at jobs that ended, by how.", ["outcome"], registry=registry
        )
        self._lost = Counter(
            "secateur_job_checkpoints_lost",
            "Checkpoints that could not be read, so that an attempt went on from the one before, or from the start.",
            registry=registry,
        )
        for status in FINAL:
            self._runs.labels(status)
            self._attempts.labels(status)
        for phase in get_args(Phase):
            self._phases.labels(phase)

    def begin(self, session: Session) -> None:
        """What has happened so far is not counted."""
        self._news(session)

    def look(self, session: Session) -> None:
        """Count what has happened since the last look."""
        for change, row in self._news(session):
            if change == "lost":
                self._lost.inc()
            elif change == "ended":
                self._ended(row)
            elif row.token == 1:
                self._waits.observe(max(0.0, (row.started_at - row.created_at).total_seconds()))

    def _news(self, session: Session) -> list[tuple[str, Row[Any]]]:
        since, self._since = self._since - OVERLAP, utc_now()
        self._seen = {key: time for key, time in self._seen.items() if time >= since}
        news = []
        for row in session.execute(_moved_since(since)):
            for change, time in (("started", row.started_at), ("ended", row.finished_at)):
                key = (change, row.job_id, row.token)
                if time is not None and time >= since and key not in self._seen:
                    self._seen[key] = time
                    news.append((change, row))
        for row in session.execute(_lost_since(since)):
            key = ("lost", row.id, 0)
            if key not in self._seen:
                self._seen[key] = row.time
                news.append(("lost", row))
        return news

    def _ended(self, row: Row[Any]) -> None:
        self._attempts.labels(row.outcome or "unknown").inc()
        if row.status not in FINAL or row.token != row.last_token:
            return
        self._runs.labels(row.status).observe(max(0.0, (row.finished_at - row.started_at).total_seconds()))
        for phase, seconds in (row.seconds or {}).items():
            if phase in get_args(Phase):
                self._phases.labels(phase).inc(max(0.0, seconds))
        if row.status == "failed" and row.error:
            self._failures.labels(row.error["code"]).inc()


def _lost_since(since: datetime) -> Select[str, datetime]:
    begun = earliest("evt", since.timestamp())
    return select(Event.id, Event.time).where(Event.id >= begun, Event.type == "job.checkpoint_lost")


def _moved_since(since: datetime) -> Select[Any]:
    return (
        select(
            Attempt.job_id,
            Attempt.token,
            Attempt.started_at,
            Attempt.finished_at,
            Attempt.outcome,
            Job.created_at,
            Job.status,
            Job.error,
            Job.token.label("last_token"),
            Job.result[("engine", "seconds")].label("seconds"),
        )
        .join(Job, Job.id == Attempt.job_id)
        .where(or_(Attempt.started_at >= since, Attempt.finished_at >= since))
    )
