"""`secateur models`: upload, download, list and inspect models."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.client_files import read_spec
from service.commands.completion import ModelId
from service.commands.connect import connect
from service.commands.exits import of_job
from service.commands.lineage import draw_lineage
from service.commands.show import (
    AsJson,
    JobDisplay,
    Limit,
    Verify,
    deleted,
    emit,
    facts,
    say,
    show_result,
    table,
    transfer,
)

app = typer.Typer(no_args_is_help=True, help="Upload, download, list and inspect models.")

FACTS = ("id", "name", "state", "family", "architecture", "task", "parameters", "size", "dtype", "structure",
         "supported", "parent_model_id", "job_id", "created_at")  # fmt: skip


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(help="Hugging Face directory: config.json, *.safetensors, tokenizer files.")
    ],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    archive: Annotated[
        bool | None,
        typer.Option("--archive/--files", help="As one archive, or file by file; default: by size, files from 8 MiB."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a model, going on after a broken connection; prints its id, or the ready model with --json.

    What the service stores already is not sent again. Repeated after an interruption, it goes on where it was.
    """
    with connect() as client, transfer(f"sending {folder}") as progress:
        model = client.push_model(folder, name, archive=archive, progress=progress)
    emit(model) if as_json else typer.echo(model["id"])


@app.command()
def pull(
    model_id: ModelId,
    out: Annotated[Path, typer.Argument(help="Folder for the files; made when missing.")],
    verify: Verify = True,
    as_json: AsJson = False,
) -> None:
    """Download a model, going on where an earlier try stopped, verify it and unpack it."""
    with connect() as client, transfer(f"fetching {model_id}") as progress:
        files = client.pull_model(model_id, out, verify=verify, progress=progress)
    if as_json:
        emit({"model_id": model_id, "files": [str(file) for file in files]})
    else:
        say(f"{len(files)} files{', verified' if verify else ''}")
        typer.echo(str(out))


@app.command()
def download(
    model_id: ModelId,
    path: Annotated[str, typer.Argument(help="Name of the file in the model, as `models show --json` lists it.")],
    out: Annotated[Path, typer.Argument(help="Where to put it.")],
    as_json: AsJson = False,
) -> None:
    """Download one file of a model, and verify its digest."""
    with connect() as client, transfer(f"fetching {path}") as progress:
        file = client.download_model_file(model_id, path, out, progress=progress)
    emit({"model_id": model_id, "path": path, "file": str(file)}) if as_json else typer.echo(str(file))


@app.command("list")
def list_(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List models, newest first."""
    with connect() as client:
        models = client.list_models(limit=limit)
    if as_json:
        emit(models)
    else:
        columns = ("id", "state", "family", "parameters", "created_at", "name")
        table(columns, ([model[column] for column in columns] for model in models))


@app.command()
def show(model_id: ModelId, as_json: AsJson = False) -> None:
    """Show one model."""
    with connect() as client:
        model = client.show_model(model_id)
    emit(model) if as_json else facts(model, FACTS)


@app.command()
def lineage(model_id: ModelId, as_json: AsJson = False) -> None:
    """Draw what a model was made from, and what was made of it."""
    with connect() as client:
        found = client.model_lineage(model_id)
    emit(found) if as_json else draw_lineage(found, width=None if sys.stdout.isatty() else 400)


@app.command()
def inspect(
    model_id: ModelId,
    dataset: Annotated[str | None, typer.Option(help="Id of a data set, ds_…, to score by and to measure on.")] = None,
    spec: Annotated[Path | None, typer.Option(help="JSON file: criteria, structures, ratios and more.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job, and print what it found.")] = False,
    report: Annotated[Path | None, typer.Option(help="File for the HTML report; waits for it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what could be cut, and at what loss; prints the job's id, or with --wait what it found."""
    order = {} if spec is None else read_spec(spec)
    if dataset is not None:
        order |= {"dataset_id": dataset}
    with connect() as client:
        job = client.inspect_model(model_id, order)
        if not (wait or report):
            emit(job) if as_json else typer.echo(job["id"])
            return
        with JobDisplay() as display:
            job = client.watch_job(job["id"], display.update)
        if report is not None and job["inspection"] is not None:
            report.write_bytes(client.job_report(job["id"]))
    emit(job) if as_json else show_result(job)
    raise typer.Exit(of_job(job["status"]))


@app.command()
def delete(model_id: ModelId, as_json: AsJson = False) -> None:
    """Delete a model that no job needs."""
    with connect() as client:
        client.delete_model(model_id)
    deleted(model_id, as_json=as_json)
