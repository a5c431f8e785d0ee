"""The parts of a deployment: `up`, `api`, `worker` and `migrate`.

What only they need is imported when they are called: every other command, and each press of the tab key, starts faster.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import select

from service import floors
from service.auth import refuse_keyless
from service.commands.database import opened
from service.commands.exits import USAGE
from service.commands.show import say
from service.config import Settings, get_settings
from service.storage import UnusableStorage, open_storage
from service.tables import ApiKey


def up(
    data_dir: Annotated[Path | None, typer.Option(help="State of the service; default: ./secateur-data.")] = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; default: 8400.")] = None,
) -> None:
    """Everything on one machine: API, one worker, embedded broker, SQLite. Prints the URL; Ctrl-C stops it all."""
    from service.up import run_up

    _refuse_vulnerable()
    settings = get_settings()
    raise typer.Exit(run_up(data_dir or settings.data_dir, settings.port if port is None else port))


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: 8400.")] = None,
) -> None:
    """Serve the HTTP API. Beyond this machine only once a key exists."""
    from service.serving import serve

    _refuse_vulnerable()
    settings = get_settings()
    given = {"host": host or settings.host, "port": settings.port if port is None else port}
    settings = settings.model_copy(update=given)
    _refuse_unusable_database(settings)
    _refuse_unusable_storage(settings.storage)
    serve(settings)


def worker() -> None:
    """Run jobs, one at a time; start one per GPU, each with its own CUDA_VISIBLE_DEVICES."""
    if importlib.util.find_spec("torch") is None:
        say("The worker needs torch: pip install 'secateur[worker]'.")
        raise typer.Exit(USAGE)
    _refuse_vulnerable()
    _refuse_unusable_storage(get_settings().storage)
    options = ["--concurrency=1", "-O", "fair", "--without-mingle", "--without-gossip"]
    name = f"--hostname=secateur-{os.getpid()}@%h"
    settings = get_settings()
    level = f"--loglevel={settings.log_level}"
    banner = [] if settings.log_format == "text" else ["--quiet"]
    # Replaces this process, so that signals reach Celery itself; the words are ours, so no shell is missed.
    command = [sys.executable, "-m", "celery", *banner, "-A", "workers.app", "worker", *options, name, level]
    os.execv(sys.executable, command)  # noqa: S606


def migrate() -> None:
    """Bring the database to the current schema."""
    from service.migrate import upgrade

    upgrade(get_settings().database)
    say("The database is up to date.")


def _refuse_vulnerable() -> None:
    try:
        floors.check()
    except floors.VulnerablePackage as error:
        say(f"Not started: {error}.")
        raise typer.Exit(USAGE) from error


def _refuse_unusable_database(settings: Settings) -> None:
    with opened(read_only=True) as session:
        session.execute(select(ApiKey.id).limit(1))
        try:
            if settings.admin_key is None:
                refuse_keyless(session, settings.host)
        except ValueError as error:
            say(str(error))
            raise typer.Exit(USAGE) from error


def _refuse_unusable_storage(url: str) -> None:
    try:
        open_storage(url)
    except UnusableStorage as error:
        say(f"SECATEUR_STORAGE_URL: {error}")
        raise typer.Exit(USAGE) from error
