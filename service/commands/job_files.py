"""`secateur jobs artifacts`, `download`, `report` and `pull`: what a job has made."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.completion import JobId
from service.commands.connect import connect
from service.commands.show import AsJson, Verify, emit, size_of, table, transfer


def artifacts(job_id: JobId, as_json: AsJson = False) -> None:
    """List the files that a job has made."""
    with connect() as client:
        rows = client.job_artifacts(job_id)
    if as_json:
        emit(rows)
    else:
        table(
            ("id", "kind", "size", "path"),
            ([row["id"], row["kind"], size_of(row["size"]), row["path"]] for row in rows),
        )


def download(
    artifact_id: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Id of the file, art_…")],
    out: Annotated[Path, typer.Argument(help="Where to put it.")],
    as_json: AsJson = False,
) -> None:
    """Download one file that a job has made, and verify its digest."""
    with connect() as client, transfer(f"fetching {artifact_id}") as progress:
        file = client.download_artifact(artifact_id, out, progress=progress)
    emit({"artifact_id": artifact_id, "file": str(file)}) if as_json else typer.echo(str(file))


def report(
    job_id: JobId,
    out: Annotated[Path | None, typer.Argument(help="Default: standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Its figures as JSON instead of the page.")] = False,
) -> None:
    """Fetch the report of a job: one HTML page that needs nothing else."""
    with connect() as client:
        content = client.job_report(job_id, as_json=as_json)
    if out is None:
        typer.echo(content, nl=False)
    else:
        out.write_bytes(content)
        typer.echo(str(out))


def pull(
    job_id: JobId,
    out: Annotated[Path, typer.Argument(help="Folder for the model and the report; made when missing.")],
    verify: Verify = True,
    as_json: AsJson = False,
) -> None:
    """Download what a job made, verify it and unpack it, the report beside it."""
    with connect() as client:
        with transfer(f"fetching {job_id}") as progress:
            files = client.pull_job(job_id, out, verify=verify, progress=progress)
        (out / "report.html").write_bytes(client.job_report(job_id))
    if as_json:
        emit({"job_id": job_id, "files": [str(file) for file in files], "report": str(out / "report.html")})
    else:
        typer.echo(str(out))
