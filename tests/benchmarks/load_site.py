"""What the load benchmarks measure: an API process with keys, rate limits and a PostgreSQL that flushes its commits."""

import io
import os
import platform
import random
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import insert, text

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.ids import new_id
from service.tables import Job, Tenant
from tests.benchmarks.open_loop import Measured, Request
from tests.databases import migrate
from tests.live import LiveService
from tests.models import tiny_dataset, tiny_model
from tests.servers import postgresql, valkey

TENANT = "default"
_RATE = 10_000_000
"""Requests per minute of a key: the limit is counted, and never reached."""


class LoadSite:
    """A service under load, with a tiny model and a data set."""

    def __init__(self, live: LiveService, folder: Path, seed: int) -> None:
        self.live, self.folder, self.chance = live, folder, random.Random(seed)
        live.start_api()
        self.model_id = self.pushed(tiny_model(folder / "model"))
        splits = {path.stem: path.read_bytes() for path in tiny_dataset(folder / "rows").glob("*.jsonl")}
        naming = {"name": "load", "task": "text-classification"}
        answer = live.client.post("/v1/datasets", params=naming, files=splits)
        assert answer.status_code == 201, answer.text
        self.dataset_id = answer.json()["id"]

    @property
    def database(self) -> Database:
        """The service's own."""
        return self.live.database

    def pushed(self, model: Path, key: str | None = None) -> str:
        """Id of a model uploaded as an archive; `key` is another tenant's."""
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as archive:
            archive.add(model, arcname="model")
        headers = {"Content-Type": "application/x-tar", **bearer(key)}
        answer = self.live.client.post("/v1/models", content=held.getvalue(), headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def order(self, **changes: Any) -> dict[str, Any]:
        """A job that prunes neurons of the tiny model."""
        cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}
        spec = {
            "name": "load",
            "model_id": self.model_id,
            "dataset_id": self.dataset_id,
            "task": "text-classification",
            "pruning": {"cuts": [cut]},
            "benchmark": None,
            "max_length": 16,
        }
        return spec | changes

    def unstructured(self, **changes: Any) -> dict[str, Any]:
        """A job of about a second: it zeroes single weights, and evaluates nothing."""
        cut = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
        return {**self.order(pruning={"cuts": [cut]}, dataset_id=None), **changes, "max_length": None}

    def created(self, spec: dict[str, Any], key: str | None = None) -> str:
        """Id of a job ordered now."""
        answer = self.live.client.post("/v1/jobs", json=spec, headers=bearer(key))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def pin(self, core: int) -> None:
        """Keep every thread of the API process, and those that these start, on one core."""
        assert self.live.api is not None
        for task in Path(f"/proc/{self.live.api.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
        print(f"the API process is kept on core {core}", flush=True)

    def queued(self, count: int) -> list[str]:
        """Ids of so many more queued jobs, like one that was ordered over HTTP; the statistics are up to date."""
        first = self.created(self.order())
        with self.database.session_scope() as session:
            job = session.get_one(Job, first)
            like = {column.key: getattr(job, column.key) for column in Job.__mapper__.column_attrs}
            rows = [{name: value for name, value in like.items() if value is not None} for _ in range(count - 1)]
            for row in rows:
                row["id"] = new_id("job")
            session.execute(insert(Job), rows)
            session.execute(text("ANALYZE"))
        return [first, *(row["id"] for row in rows)]

    def clear(self) -> None:
        """Remove all jobs."""
        with self.database.session_scope() as session:
            session.execute(text("TRUNCATE jobs, idempotency_records, webhook_deliveries CASCADE"))

    def reads(self, ids: list[str], count: int) -> list[Request]:
        """Reads of the status of jobs chosen by chance."""
        return [self.request("GET", f"/v1/jobs/{self.chance.choice(ids)}") for _ in range(count)]

    def request(self, method: str, path: str, body: str = "", **headers: str) -> Request:
        """A request with the key."""
        return Request(method, path, {"Authorization": f"Bearer {self.live.api_key}", **headers}, body)


@contextmanager
def load_site(seed: int) -> Iterator[LoadSite]:
    """A service for the length of the block, in a throw-away folder."""
    folders = tempfile.TemporaryDirectory(prefix="secateur-load-")
    with folders as name, postgresql(durable=True) as server, valkey() as broker:
        folder = Path(name)
        settings = Settings(
            data_dir=folder / "data",
            database_url=SecretStr(server.url(server.create())),
            broker_url=SecretStr(broker.url),
        )
        migrate(settings.database)
        print_machine(settings, seed)
        with LiveService(settings, admin_key(settings)) as live:
            yield LoadSite(live, folder, seed)


def bearer(key: str | None) -> dict[str, str]:
    """The header that sends a key instead of the client's own; nothing without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def admin_key(settings: Settings, tenant: str = TENANT) -> str:
    """A key of a tenant whose requests are counted against a limit."""
    database = Database(settings.database)
    with database.session_scope() as session:
        session.merge(Tenant(name=tenant, limits={"requests_per_minute": _RATE}))
        key = issue_key(session, tenant=tenant, name="load", scopes=["admin"])[1]
    database.dispose()
    return key


def print_machine(settings: Settings, seed: int) -> None:
    """What the figures depend on."""
    packages = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "psycopg", "pydantic")
    with psycopg.connect(settings.database.replace("+psycopg", "")) as connection:
        server = connection.info.parameter_status("server_version")
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{os.cpu_count()} cores, {platform.machine()}, {system}")
    print(", ".join(f"{name} {version(name)}" for name in packages), f"PostgreSQL {server}, fsync on", sep=", ")
    print(f"seed {seed}; load average at the start {os.getloadavg()[0]:.2f}", flush=True)


def tell(name: str, measured: Measured, target_ms: float) -> None:
    """One line of figures, and whether the 99th percentile keeps to the target."""
    ratio = measured.percentile(0.99) / target_ms
    failed = sum(count for status, count in measured.statuses.items() if status == 0 or status >= 500)
    print(f"{name:34} {measured}")
    print(f"{'':34} p99 / target of {target_ms:.0f} ms = {ratio:.2f}; failed {failed}; {load()}", flush=True)
    if failed:
        sys.exit(f"{failed} requests failed")


def load() -> str:
    """How busy the machine was over the last minute."""
    return f"load average {os.getloadavg()[0]:.2f}"
