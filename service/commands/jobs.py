"""`secateur jobs`: submit, follow, cancel and look at jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.client_files import read_spec
from service.commands import job_files, lifecycle
from service.commands.completion import JobId
from service.commands.connect import connect
from service.commands.estimates import estimate
from service.commands.exits import INTERRUPTED
from service.commands.follow import Junit, Markdown, check_files, conclude
from service.commands.follow import follow as follow_job
from service.commands.show import AsJson, Json, Limit, deleted, emit, facts, say, show_result, table

app = typer.Typer(no_args_is_help=True, help="Submit, follow, cancel and look at jobs.")


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="JSON file: the job, with model_id and dataset_id.")],
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, queue nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end, as `jobs watch` does.")] = False,
    junit: Junit = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job; prints its id, or the job with --json. With --wait, --junit or --markdown as `jobs watch`."""
    order = read_spec(spec)
    check_files(junit, markdown, as_json=as_json)
    with connect() as client:
        if validate_only:
            emit(client.validate_job(order))
            return
        job = client.submit_job(order)
        if wait or junit or markdown:
            say(f"{job['id']} queued")
            conclude(follow_job(client, job["id"]), as_json=as_json, junit=junit, markdown=markdown)
    emit(job) if as_json else typer.echo(job["id"])


@app.command()
def watch(job_id: JobId, junit: Junit = None, markdown: Markdown = None, as_json: AsJson = False) -> None:
    """Follow a job until it ends; the exit code tells how: 0 succeeded, 3 failed, 4 rejected, 5 cancelled."""
    check_files(junit, markdown, as_json=as_json)
    with connect() as client:
        job = follow_job(client, job_id)
    conclude(job, as_json=as_json, junit=junit, markdown=markdown)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job; what it had made is dropped."""
    with connect() as client:
        job = client.cancel_job(job_id)
    emit(job) if as_json else say(f"{job_id} {job['status']}")


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: compression or inspection.")] = None,
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    model_id: Annotated[str | None, typer.Option("--model", help="Only jobs about this model.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect() as client:
        jobs = client.list_jobs(kind=kind, status=status, model_id=model_id, name=name, limit=limit)
    if as_json:
        emit(jobs)
    else:
        columns = ("id", "kind", "status", "phase", "created_at", "name")
        table(columns, ([job[column] for column in columns] for job in jobs))


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job: where it stands, or what it found."""
    with connect() as client:
        job = client.show_job(job_id)
    if as_json:
        emit(job)
    else:
        facts(job, ("id", "kind", "name", "status", "phase", "progress", "created_at", "started_at", "finished_at"))
        show_result(job)


@app.command()
def metrics(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="Only this series.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the training curves of a job."""
    with connect() as client:
        series = client.job_metrics(job_id, name=name)
    if as_json:
        emit(series)
    else:
        rows = ((one["name"], point["step"], point["value"]) for one in series for point in one["points"])
        table(("series", "step", "value"), rows)


@app.command()
def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended, as they happen.")] = False,
    after: Annotated[str | None, typer.Option(help="Only those behind this one, evt_….")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what happened in a job, oldest first; with --follow --json one object per line."""
    with connect() as client:
        if follow:
            _follow_events(client, job_id, after, as_json)
            return
        rows = client.job_events(job_id, after=after)
    if as_json:
        emit(rows)
    else:
        table(("time", "level", "type", "message"), ([r["time"], r["level"], r["type"], r["message"]] for r in rows))


def _follow_events(client: Client, job_id: str, after: str | None, as_json: bool) -> None:
    try:
        for event in client.stream_job_events(job_id, after=after):
            shown = json.dumps(event, ensure_ascii=False) if as_json else _line(event)
            typer.echo(shown)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _line(event: Json) -> str:
    return f"{event['time']}  {event['level']:<7}  {event['type']:<20}  {event['message']}"


@app.command()
def delete(job_id: JobId, as_json: AsJson = False) -> None:
    """Delete a job that has ended, with its files; its model first, if it made one."""
    with connect() as client:
        client.delete_job(job_id)
    deleted(job_id, as_json=as_json)


_REST: tuple[Callable[..., None], ...] = (
    lifecycle.pause,
    lifecycle.resume,
    lifecycle.retry,
    lifecycle.clone,
    estimate,
    job_files.artifacts,
    job_files.download,
    job_files.report,
    job_files.pull,
)
for command in _REST:
    app.command()(command)
