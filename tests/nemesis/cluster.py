"""The service under test: one API process, two workers, PostgreSQL and Valkey, each of which can be killed alone.

Processes die with the thread that started them, so one thread, the run's own, starts all of them.
"""

import os
import signal
import subprocess
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import psutil
import psycopg
from redis import Redis

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.embedded import EmbeddedBroker
from service.processes import stop
from tests.faults.conftest import make_settings
from tests.live import LiveService, kill_tree
from tests.models import tiny_dataset, tiny_model
from tests.nemesis.book import Book
from tests.servers import PostgreSQL

TENANTS = ("red", "blue")
WORKERS = 2
WEBHOOK_TIMEOUT = 3.0
_WEBHOOKS = {
    "WEBHOOK_ALLOW_PRIVATE": "true",
    "WEBHOOK_TIMEOUT_SECONDS": str(WEBHOOK_TIMEOUT),
    "WEBHOOK_RETRY_SECONDS": str([1] * 20),
    "WEBHOOK_SECONDS": "0.5",
}
_LEAVING_SECONDS = 45.0


class Service(LiveService):
    """The processes, with webhooks that may go to this machine and are tried again soon."""

    @property
    def environment(self) -> dict[str, str]:
        """What the processes are told."""
        return super().environment | {f"SECATEUR_{name}": value for name, value in _WEBHOOKS.items()}


class Cluster:
    """Everything that can be broken; `None` in the place of a process that is down."""

    def __init__(
        self, folder: Path, postgresql: PostgreSQL, broker: EmbeddedBroker, database: str, leases: str
    ) -> None:
        self.postgresql, self.broker = postgresql, broker
        self.settings: Settings = make_settings(folder, postgresql.url(database), broker.url, leases)
        self.database = Database(self.settings.database)
        with self.database.session_scope() as session:
            self.keys = {
                tenant: issue_key(session, tenant=tenant, name="nemesis", scopes=["write"])[1] for tenant in TENANTS
            }
        self.live = Service(self.settings, self.keys[TENANTS[0]])
        self.workers: list[subprocess.Popen[bytes] | None] = [None] * WORKERS
        self.frozen: dict[int, list[psutil.Process]] = {}
        self.database_is_up = True

    def start(self) -> None:
        """Start what is down, and wait until all of it answers."""
        if not self.database_is_up:
            self.restart_database()
        if not self.broker_is_up:
            self.broker.start()
        if self.api is None:
            self.start_api()
        for number in range(WORKERS):
            self.thaw(number)
            if self.worker(number) is None:
                self.start_worker(number)
        self.live.wait_for(self.live.alive, "the API")
        self.live.wait_for(self._has_workers, "the workers")

    def _has_workers(self) -> bool:
        alive = self.live.workers()
        return all(any(name.endswith(f":{worker.pid}") for name in alive) for worker in self.workers if worker)

    def upload(self, tenant: str, folder: Path) -> Book:
        """Give a tenant a model and a data set that can be trained on."""
        model, dataset = folder / "model", folder / "dataset"
        if not model.exists():
            tiny_model(model)
            tiny_dataset(dataset, train=64, validation=16, test=32)
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(model, arcname="model")
        splits = {file.stem: (file.name, file.read_bytes()) for file in dataset.iterdir()}
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        client, kind = self.live.client, {"Content-Type": "application/x-tar"}
        made = client.post("/v1/models?name=tiny", content=archive.getvalue(), headers=headers | kind)
        given = client.post("/v1/datasets?name=tiny&task=text-classification", files=splits, headers=headers)
        assert (made.status_code, given.status_code) == (201, 201), (made.text, given.text)
        return Book(tenant, made.json()["id"], given.json()["id"])

    def ended(self) -> dict[str, int]:
        """Processes of the service that have ended: their names and exit codes."""
        processes = {"api": self.live.api} | {f"worker {n}": process for n, process in enumerate(self.workers)}
        codes = {name: process.poll() for name, process in processes.items() if process is not None}
        return {name: code for name, code in codes.items() if code is not None}

    def start_again(self, name: str) -> None:
        """Start a process by its name there."""
        if name == "api":
            self.start_api()
        else:
            self.start_worker(int(name.split()[1]))

    # The API

    @property
    def api(self) -> subprocess.Popen[bytes] | None:
        """Its process, if it runs."""
        process = self.live.api
        return process if process is not None and process.poll() is None else None

    def start_api(self) -> None:
        """Start it, without waiting."""
        self.live.api = self.live.launch("api")

    # Workers

    def worker(self, number: int) -> subprocess.Popen[bytes] | None:
        """One worker's main process, if it runs."""
        process = self.workers[number]
        return process if process is not None and process.poll() is None else None

    def start_worker(self, number: int) -> None:
        """Start one, without waiting."""
        process = self.workers[number] = self.live.launch("worker")
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process.pid, {cpus[number % len(cpus)]})

    def below(self, number: int) -> list[psutil.Process]:
        """The processes of one worker, the main one first."""
        process = self.worker(number)
        if process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(process.pid)
            return [main, *main.children(recursive=True)]
        return []

    def engine(self, number: int) -> psutil.Process | None:
        """The engine that one worker runs, if it runs one."""
        for process in self.below(number):
            with suppress(psutil.Error):
                if "workers.engine" in process.cmdline() and process.name() != "bwrap":
                    return process
        return None

    def freeze(self, number: int) -> bool:
        """Stop a worker with all below it, as a machine that is suspended; whether there was one."""
        found = self.below(number)
        for process in found:
            with suppress(psutil.Error):
                process.suspend()
        if found:
            self.frozen[number] = found
        return bool(found)

    def thaw(self, number: int) -> None:
        """Let it go on."""
        for process in self.frozen.pop(number, []):
            with suppress(psutil.Error):
                process.resume()

    def kill_worker(self, number: int) -> bool:
        """SIGKILL its group, and so what is below it; whether there was one."""
        process = self.worker(number)
        if process is None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.frozen.pop(number, None)
        return True

    def await_end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process that was told to leave, and kill it when it does not; its exit code."""
        return stop(process, grace=_LEAVING_SECONDS)

    # Servers

    @property
    def broker_is_up(self) -> bool:
        """Whether Valkey runs."""
        return self.broker.process is not None and self.broker.process.poll() is None

    def flush_broker(self) -> None:
        """Forget every message."""
        with Redis(unix_socket_path=str(self.broker.socket)) as client:
            client.flushall()

    def crash_database(self) -> None:
        """End PostgreSQL at once, as a crash does."""
        self.postgresql.stop()
        self.database_is_up = False

    def restart_database(self) -> None:
        """Start it again, and wait until it has recovered."""
        self.postgresql.restart()
        self.database_is_up = True

    def cut_connections(self) -> None:
        """End every session of the database's clients in the middle of what it does."""
        url = self.settings.database.replace("postgresql+psycopg", "postgresql")
        others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")

    def close(self) -> None:
        """End all processes of the service."""
        for number in range(WORKERS):
            self.thaw(number)
        for process in (*self.workers, self.live.api):
            if process is not None:
                kill_tree(process)
        self.live.client.close()
        self.live.database.dispose()
        self.database.dispose()
