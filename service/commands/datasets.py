"""`secateur datasets`: upload and list data sets."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.completion import DatasetId
from service.commands.connect import connect
from service.commands.show import AsJson, Limit, deleted, emit, facts, table, transfer

app = typer.Typer(no_args_is_help=True, help="Upload and list data sets.")


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder with train, validation, test, calibration: .jsonl or .csv, any of them.")
    ],
    task: Annotated[str, typer.Option(help="What the rows are for.")] = "text-classification",
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a data set; prints its id, or the data set with --json."""
    with connect() as client, transfer(f"sending {folder}") as progress:
        dataset = client.push_dataset(folder, task, name, progress=progress)
    emit(dataset) if as_json else typer.echo(dataset["id"])


@app.command("list")
def list_(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List data sets, newest first."""
    with connect() as client:
        datasets = client.list_datasets(limit=limit)
    if as_json:
        emit(datasets)
    else:
        rows = ([d["id"], d["task"], _rows(d), d["created_at"], d["name"]] for d in datasets)
        table(("id", "task", "rows", "created_at", "name"), rows)


@app.command()
def show(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Show one data set."""
    with connect() as client:
        dataset = client.show_dataset(dataset_id)
    emit(dataset) if as_json else facts(dataset, ("id", "name", "task", "splits", "labels", "created_at"))


@app.command()
def delete(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Delete a data set that no job needs."""
    with connect() as client:
        client.delete_dataset(dataset_id)
    deleted(dataset_id, as_json=as_json)


def _rows(dataset: dict[str, dict[str, dict[str, int]]]) -> str:
    return ", ".join(f"{split} {facts['rows']}" for split, facts in dataset["splits"].items())
