"""What the service holds at this moment, read from its tables: the same in every API process."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.states import FINAL, FOLLOWS, HELD
from service.tables import Job, WebhookDelivery, Worker, utc_now
from service.worker_view import live_workers

DELIVERY_STATES = ("pending", "succeeded", "failed")


class Gauges:
    """Jobs, workers, their devices, webhooks and disk space."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"secateur_{name}", help_text, labels, registry=registry)

        self._jobs = gauge("jobs", "Jobs in each status.", "status")
        self._oldest = gauge("oldest_queued_job_age_seconds", "Since when the oldest queued job has been there.")
        self._resumable = gauge("resumable_jobs", "Unfinished jobs with a checkpoint to go on from.")
        self._workers = gauge("workers", "Workers that are alive.")
        self._devices = gauge("devices", "Devices of live workers, by whether a job runs on them.", "kind", "state")
        self._deliveries = gauge("webhook_deliveries", "Webhook deliveries that are remembered.", "status")
        self._free = gauge("storage_free_bytes", "Room in the storage; not set where it has no bound.")

    def look(self, session: Session, free_bytes: int | None) -> None:
        """Set them all."""
        _set(self._jobs, FOLLOWS, _counts(session, Job.status))
        oldest = session.scalar(select(func.min(Job.created_at)).where(Job.status == "queued"))
        self._oldest.set(max(0.0, (utc_now() - oldest).total_seconds()) if oldest else 0.0)
        unfinished = Job.status.in_(FOLLOWS.keys() - FINAL)
        self._resumable.set(session.scalar(select(func.count()).where(unfinished, Job.checkpoint.is_not(None))) or 0)
        _set(self._deliveries, DELIVERY_STATES, _counts(session, WebhookDelivery.status))
        self._look_at_workers(session)
        self._free.set(float("nan") if free_bytes is None else free_bytes)

    def _look_at_workers(self, session: Session) -> None:
        workers = live_workers(session)
        self._workers.set(len(workers))
        running = select(Job.worker, Job.configuration["device"].as_string()).where(Job.status.in_(HELD))
        busy = {row[0]: row[1] for row in session.execute(running)}
        found = Counter(state for worker in workers for state in _states(worker, busy.get(worker.name)))
        self._devices.clear()
        for kind in ("cpu", "cuda"):
            for state in ("busy", "idle"):
                self._devices.labels(kind, state).set(found[kind, state])


def _states(worker: Worker, device: str | None) -> Iterable[tuple[str, str]]:
    """Kind and state of each device; `device` is what the worker's job asked for, None where it has none.

    A worker runs one job, on one device: its first GPU unless it has none or the job wants the CPU.
    """
    kinds = [entry["kind"] for entry in worker.devices]
    used = None if device is None or not kinds else "cuda" if device != "cpu" and "cuda" in kinds else "cpu"
    for index, kind in enumerate(kinds):
        yield kind, "busy" if kind == used and kinds.index(kind) == index else "idle"


def _counts(session: Session, column: InstrumentedAttribute[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in session.execute(select(column, func.count()).group_by(column))}


def _set(gauge: Gauge, always: Iterable[str], counts: dict[str, int]) -> None:
    gauge.clear()
    for label in {*always, *counts}:
        gauge.labels(label).set(counts.get(label, 0))
