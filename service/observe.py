"""Counters for Prometheus: requests by route template, jobs by status."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.states import FOLLOWS
from service.tables import Job

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A client may invent others, and each would be a series."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Telemetry:
    """The counters of one API process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter("secateur_http_requests", "Requests answered.", labels, registry=self.registry)
        self._seconds = Histogram(
            "secateur_http_request_seconds",
            "Time from the request to the end of its answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._jobs = Gauge("secateur_jobs", "Jobs in each status.", ["status"], registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is the template, never the path, so that ids make no series."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self, session: Session) -> bytes:
        """The exposition text, with the jobs of all tenants counted now."""
        rows = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
        counts: dict[str, int] = {row[0]: row[1] for row in rows}
        for status in FOLLOWS:
            self._jobs.labels(status).set(counts.get(status, 0))
        return generate_latest(self.registry)
