"""A worker's row in the database: that it is alive, and what it can use."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import delete, update

from service import clocks
from service.config import Settings
from service.db import DATABASE_AWAY, Database, db_epoch, rows_changed
from service.tables import Worker
from workers.sandbox import level_of

log = logging.getLogger(__name__)

_FORGET_SECONDS = 86400.0
_PROBE_SECONDS = 120.0
_PROBE = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([{"kind": "cuda", "name": gpu.name, "memory": gpu.total_memory} for gpu in found]))
"""


def devices() -> list[dict[str, Any]]:
    """The CPU, and each GPU that torch can use: `{"kind", "name", "memory"}`, the CPU also with its `threads`.

    torch is asked in a process of its own: this one must stay free of it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: list[dict[str, Any]] = [
        {"kind": "cpu", "name": _cpu_name(), "memory": memory, "threads": len(os.sched_getaffinity(0))}
    ]
    if shutil.which("nvidia-smi") is None:
        return found
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=True
        )
        gpus: list[dict[str, Any]] = json.loads(answer.stdout)
        return found + gpus
    except (OSError, subprocess.SubprocessError, ValueError):
        log.exception("The GPUs could not be asked; this worker shows none")
        return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


class Presence:
    """A thread that keeps the row fresh; the row says until when it can be believed."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings = name, settings
        self._devices: list[dict[str, Any]] = []
        self._database = Database(settings.database)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and take the row away."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        try:
            with self._database.session_scope() as session:
                session.execute(delete(Worker).where(Worker.name == self._name))
        except Exception:
            log.exception("The worker's row was not removed; it will expire")
        self._database.dispose()

    def _run(self) -> None:
        self._devices = devices()
        while not self._stop.is_set():
            try:
                self.beat()
            except DATABASE_AWAY as error:
                log.warning("The database is away (%s); trying again", type(error).__name__)
            except Exception:
                log.exception("The worker could not tell that it is alive; it tries again")
            self._stop.wait(self._settings.heartbeat_seconds)

    def beat(self) -> None:
        """Write the row; rows of workers that have been gone for a day are removed."""
        seen_until = db_epoch() + self._settings.lease_seconds
        with self._database.session_scope() as session:
            row = update(Worker).where(Worker.name == self._name).values(seen_until=seen_until)
            if rows_changed(session, row) == 0:
                if fault := clocks.fault_of(clocks.database_now(session)):
                    log.warning(fault)
                session.execute(delete(Worker).where(Worker.seen_until < db_epoch() - _FORGET_SECONDS))
                session.add(
                    Worker(
                        name=self._name, devices=self._devices, sandbox=level_of(self._settings), seen_until=seen_until
                    )
                )
