"""`secateur jobs`: submit, follow, cancel and look at jobs."""

from pathlib import Path
from typing import Annotated

import typer

from service.client_files import read_spec
from service.commands.connect import connect
from service.commands.exits import of_job
from service.commands.show import AsJson, JobDisplay, emit, facts, say, show_result, table, transfer

app = typer.Typer(no_args_is_help=True, help="Submit, follow, cancel and look at jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, job_…")]


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="JSON file: the job, with model_id and dataset_id.")],
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, queue nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a job; prints its id, or the job with --json."""
    order = read_spec(spec)
    with connect() as client:
        if validate_only:
            emit(client.validate_job(order))
            return
        job = client.submit_job(order)
    emit(job) if as_json else typer.echo(job["id"])


@app.command()
def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job until it ends; the exit code tells how: 0 succeeded, 3 failed, 4 rejected, 5 cancelled."""
    with connect() as client, JobDisplay() as display:
        job = client.watch_job(job_id, display.update)
    emit(job) if as_json else show_result(job)
    raise typer.Exit(of_job(job["status"]))


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
    limit: Annotated[int, typer.Option(min=1)] = 20,
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
def events(job_id: JobId, as_json: AsJson = False) -> None:
    """Print what happened in a job, oldest first."""
    with connect() as client:
        rows = client.job_events(job_id)
    if as_json:
        emit(rows)
    else:
        table(("time", "level", "type", "message"), ([r["time"], r["level"], r["type"], r["message"]] for r in rows))


@app.command()
def pull(
    job_id: JobId,
    out: Annotated[Path, typer.Argument(help="Folder for the model and the report; made when missing.")],
    as_json: AsJson = False,
) -> None:
    """Download what a job made, verify it and unpack it, the report beside it."""
    with connect() as client:
        with transfer(f"fetching {job_id}") as progress:
            files = client.pull_job(job_id, out, progress=progress)
        (out / "report.html").write_bytes(client.job_report(job_id))
    if as_json:
        emit({"job_id": job_id, "files": [str(file) for file in files], "report": str(out / "report.html")})
    else:
        typer.echo(str(out))
