"""`secateur jobs pause`, `resume`, `retry` and `clone`."""

from pathlib import Path
from typing import Annotated

import typer

from service.client_files import read_spec
from service.commands.completion import JobId
from service.commands.connect import connect
from service.commands.show import AsJson, Json, emit, say


def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Pause a job: what it has done is saved, its worker takes another."""
    with connect() as client:
        _tell(client.pause_job(job_id), as_json)


def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with connect() as client:
        _tell(client.resume_job(job_id), as_json)


def retry(
    job_id: JobId,
    from_start: Annotated[bool, typer.Option("--from-start", help="Drop what was saved of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try a failed or cancelled job again, from its checkpoint where it has one."""
    with connect() as client:
        _tell(client.retry_job(job_id, start="start" if from_start else "checkpoint"), as_json)


def clone(
    job_id: JobId,
    changes: Annotated[
        Path | None, typer.Option("--changes", help="JSON file: fields of the spec that change, null for the default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a new job of the same spec; prints its id, or the job with --json."""
    with connect() as client:
        job = client.clone_job(job_id, read_spec(changes) if changes is not None else None)
    emit(job) if as_json else typer.echo(job["id"])


def _tell(job: Json, as_json: bool) -> None:
    emit(job) if as_json else say(f"{job['id']} {job['status']}")
