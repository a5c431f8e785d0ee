"""The parts of a deployment: `up`, `api`, `worker`, `migrate` and `keys`."""

import importlib.util
import os
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from service import logs
from service.auth import DEFAULT_TENANT, issue_key, refuse_keyless
from service.commands.exits import FAILED, USAGE
from service.commands.show import AsJson, emit, say
from service.config import Settings, get_settings
from service.db import Database
from service.migrate import upgrade
from service.tables import utc_now
from service.up import run_up

GRACE_SECONDS = 8
"""For requests under way when the API is told to stop; whoever started it may kill it after 10."""

keys = typer.Typer(no_args_is_help=True, help="Make API keys, directly in the database.")


class ScopeName(StrEnum):
    """What a key may do; each includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


def up(
    data_dir: Annotated[Path | None, typer.Option(help="State of the service; default: ./secateur-data.")] = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; default: 8400.")] = None,
) -> None:
    """Everything on one machine: API, one worker, embedded broker, SQLite. Prints the URL; Ctrl-C stops it all."""
    settings = get_settings()
    raise typer.Exit(run_up(data_dir or settings.data_dir, settings.port if port is None else port))


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: 8400.")] = None,
) -> None:
    """Serve the HTTP API. Beyond this machine only once a key exists."""
    settings = get_settings()
    host = host or settings.host
    if settings.admin_key is None:
        _refuse_keyless(settings, host)
    uvicorn.run(
        "service.app:create_app",
        factory=True,
        host=host,
        port=settings.port if port is None else port,
        log_config=logs.configuration(settings.log_level),
        server_header=False,
        # Followers of events would otherwise hold the process for ever; they, and uploads, go on at the next one.
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def worker() -> None:
    """Run jobs, one at a time; start one per GPU, each with its own CUDA_VISIBLE_DEVICES."""
    if importlib.util.find_spec("torch") is None:
        say("The worker needs torch: pip install 'secateur[worker]'.")
        raise typer.Exit(USAGE)
    options = ["--concurrency=1", "-O", "fair", "--without-mingle", "--without-gossip"]
    name = f"--hostname=secateur-{os.getpid()}@%h"
    level = f"--loglevel={get_settings().log_level}"
    # Replaces this process, so that signals reach Celery itself; the words are ours, so no shell is missed.
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *options, name, level])  # noqa: S606


def migrate() -> None:
    """Bring the database to the current schema."""
    upgrade(get_settings().database)
    say("The database is up to date.")


@keys.command()
def create(
    scope: Annotated[list[ScopeName], typer.Option(help="May be repeated.")],
    tenant: Annotated[str, typer.Option(help="Whose data the key opens.")] = DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "command line",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once. Needs access to the database, no other key."""
    expires_at = None if days is None else utc_now() + timedelta(days=days)
    database = Database(get_settings().database)
    try:
        with database.session_scope() as session:
            row, plaintext = issue_key(session, tenant=tenant, name=name, scopes=scope, expires_at=expires_at)
            key_id = row.id
    except SQLAlchemyError as error:
        raise _unprepared() from error
    finally:
        database.dispose()
    emit({"id": key_id, "tenant": tenant, "key": plaintext}) if as_json else typer.echo(plaintext)


def _refuse_keyless(settings: Settings, host: str) -> None:
    database = Database(settings.database)
    try:
        with database.session_scope(read_only=True) as session:
            refuse_keyless(session, host)
    except ValueError as error:
        say(str(error))
        raise typer.Exit(USAGE) from error
    except SQLAlchemyError as error:
        raise _unprepared() from error
    finally:
        database.dispose()


def _unprepared() -> typer.Exit:
    say("The database cannot be used: check SECATEUR_DATABASE_URL, and run `secateur migrate` first.")
    return typer.Exit(FAILED)
