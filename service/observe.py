"""Figures for Prometheus: of this process its requests and bytes, of the whole service its jobs and workers."""

import threading

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from sqlalchemy.orm import Session

from service.gauges import Gauges
from service.job_figures import JobFigures

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A client may invent others, and each would be a series."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Telemetry:
    """The figures that one API process shows, in a registry of their own.

    Every `route` is a template, never a path, so that ids make no series.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._scrape = threading.Lock()
        labels = ["method", "route", "status"]
        self._requests = Counter("secateur_http_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "secateur_http_request_seconds",
            "Time from the request to the end of its answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._received = Counter(
            "secateur_http_received_bytes", "Bytes of request bodies.", ["route"], registry=registry
        )
        self._sent = Counter("secateur_http_sent_bytes", "Bytes of bodies of answers.", ["route"], registry=registry)
        self._damaged = Counter(
            "secateur_damaged_files", "Stored files found lost or changed, by whom.", ["by"], registry=registry
        )
        for reader in ("download", "scrub"):
            self._damaged.labels(reader)
        self._jobs = JobFigures(registry)
        self._gauges = Gauges(registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def received(self, route: str, size: int) -> None:
        """Bytes of a request's body have come."""
        self._received.labels(route).inc(size)

    def sent(self, route: str, size: int) -> None:
        """Bytes of an answer's body have gone."""
        self._sent.labels(route).inc(size)

    def damaged(self, by: str) -> None:
        """A stored file was lost, or was not what it had been: found by a `download` or the `scrub`."""
        self._damaged.labels(by).inc()

    def begin(self, session: Session) -> None:
        """Jobs are counted from now on."""
        with self._scrape:
            self._jobs.begin(session)

    def render(self, session: Session, free_bytes: int | None) -> bytes:
        """The exposition text; jobs are those of all tenants, `free_bytes` is the room in the storage."""
        with self._scrape:
            self._jobs.look(session)
            self._gauges.look(session, free_bytes)
            return generate_latest(self.registry)
