"""The Celery application of the workers and its one entry.

The worker's main process never imports torch: Celery spawns a process for each job, and the engine is a child of that.
"""

import logging
import logging.config
import os
from functools import cache
from typing import Any

from celery import signals

from service import logs
from service.broker import ENTRY, Broker, make_celery
from service.config import adopt, get_settings
from service.processes import die_with_parent
from workers import supervisor
from workers.consumer import Hearing
from workers.presence import Presence
from workers.sandbox import SandboxMissing, settle
from workers.staging import sweep

log = logging.getLogger(__name__)

NO_SANDBOX = 2
"""Exit code of a worker that must have a sandbox and finds none: that of a setting that cannot be used."""

app = make_celery(get_settings().broker)
app.conf.worker_consumer = "workers.consumer:SteadyConsumer"


@app.task(name=ENTRY)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Work off what is queued: that there is something is all that a ring says, whatever job it names."""
    worker = os.getppid()
    die_with_parent(worker)
    supervisor.run(get_settings(), worker_pid=worker)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    settings = get_settings()
    logging.config.dictConfig(logs.configuration(settings.log_level, settings.log_format))


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _confine(**_: Any) -> None:
    """Decide once in what jobs run: none of them can make the worker think again, by filling its disk for one."""
    _set_up_logging()
    try:
        adopt(settle(get_settings()))
    except SandboxMissing as missing:
        log.critical("SECATEUR_SANDBOX=bubblewrap, but there is no sandbox: %s", missing)
        raise SystemExit(NO_SANDBOX) from missing


@cache
def _presence() -> Presence:
    return Presence(supervisor.worker_name(os.getpid()), get_settings())


@cache
def _hearing() -> Hearing:
    return Hearing(Broker(get_settings().broker).waiting, get_settings().deaf_seconds)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: Any) -> None:
    scratch = get_settings().scratch
    scratch.mkdir(parents=True, exist_ok=True)
    supervisor.drain_file(scratch, os.getpid()).unlink(missing_ok=True)
    sweep(scratch)
    _presence().start()
    _hearing().start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _shutting_down(**_: Any) -> None:
    _hearing().stop()
    supervisor.drain_file(get_settings().scratch, os.getpid()).touch()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _shutdown(**_: Any) -> None:
    _presence().stop()
    supervisor.drain_file(get_settings().scratch, os.getpid()).unlink(missing_ok=True)
