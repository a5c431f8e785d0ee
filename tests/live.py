"""The service as real processes on the loopback, for tests that kill them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from service.config import Settings, environment_of
from service.db import Database
from service.processes import start, stop
from service.worker_view import live_workers
from tests.servers import free_port

START_SECONDS = 60.0
WORKER = ("-m", "service.cli", "worker")


class LiveService:
    """An API process and worker processes over the database, broker and folders of `settings`."""

    def __init__(self, settings: Settings, api_key: str, worker: Sequence[str] = WORKER) -> None:
        """`worker` is the command of a worker, after the interpreter."""
        self.settings = settings
        self._worker = worker
        self.api_key = api_key
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.logs = settings.data_dir.absolute()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.api: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.database = Database(settings.database)
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {api_key}"}, timeout=30, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.database.dispose()
        self.leave_one()
        for process in (self.worker, self.api):
            if process is not None:
                kill_tree(process)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes are told: the settings that were made, and nothing of this process's own."""
        told = {f"SECATEUR_{name.upper()}" for name in self.settings.model_fields_set}
        made = {name: value for name, value in environment_of(self.settings).items() if name in told}
        return {"PATH": os.defpath} | made | {"SECATEUR_DATA_DIR": str(self.logs)}

    def launch(self, part: str) -> subprocess.Popen[bytes]:
        """Start an `api` or a `worker` process, without waiting for it."""
        api = ("-m", "service.cli", "api", "--host", "127.0.0.1", "--port", str(self.port))
        with (self.logs / f"{part}.log").open("ab") as log:
            command = [sys.executable, *(api if part == "api" else self._worker)]
            return start(command, env=self.environment, stdout=log, stderr=log, new_session=True)

    def start_api(self) -> None:
        """Start an API process and wait until it answers."""
        self.api = self.launch("api")
        self.wait_for(self.alive, "the API")

    def start_worker(self) -> None:
        """Start a worker process and wait until it has told the database that it is there."""
        self.worker = self.launch("worker")
        self._await_worker(self.worker)

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Start one more, which ends with `leave_one`."""
        self.others.append(self.launch("worker"))
        self._await_worker(self.others[-1])
        return self.others[-1]

    def leave_one(self) -> None:
        """SIGKILL the workers that were added."""
        while self.others:
            kill_tree(self.others.pop())

    def _await_worker(self, worker: subprocess.Popen[bytes]) -> None:
        # One thread for the engine: a tiny network gains nothing from more, and on a busy machine they would wait.
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(worker.pid, {cpus[worker.pid % len(cpus)]})
        self.wait_for(lambda: any(name.endswith(f":{worker.pid}") for name in self.workers()), "the worker")

    def workers(self) -> list[str]:
        """Names of the workers that are alive."""
        with self.database.session_scope(read_only=True) as session:
            return [worker.name for worker in live_workers(session)]

    def alive(self) -> bool:
        """Whether the API answers."""
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def wait_for(self, condition: Any, what: str, seconds: float = START_SECONDS) -> None:
        """Wait until `condition()` holds; fails with the processes' logs when it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.log()}"
            assert not self._dead(), f"died while waiting for {what}\n{self.log()}"
            time.sleep(0.1)

    def _dead(self) -> bool:
        return any(process is not None and process.poll() is not None for process in (self.api, self.worker))

    def log(self) -> str:
        """The last lines that the processes wrote."""
        return "\n".join(f"--- {file.name}\n{_tail(file)}" for file in sorted(self.logs.glob("*.log")))


def _tail(file: Path, lines: int = 60) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a child and everything below it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    stop(process, grace=0, gently=signal.SIGKILL)
    for child in below:
        if child.is_running():
            child.kill()
