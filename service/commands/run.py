"""`secateur run`: the whole way from a model on disk to a smaller one on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import Client, UnusableFolder
from service.client_files import read_spec
from service.commands.connect import connect
from service.commands.exits import INTERRUPTED, of_job
from service.commands.show import AsJson, JobDisplay, emit, say, show_result, transfer


def run(
    spec: Annotated[Path, typer.Option(help="JSON file: the job; may leave out model_id and dataset_id.")],
    out: Annotated[Path, typer.Option(help="Folder for the pruned model and the report; new or empty.")],
    model: Annotated[Path | None, typer.Option(help="Hugging Face directory to prune.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Folder with train.jsonl, validation.jsonl, test.jsonl.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a model and a data set, run a job, fetch and verify what it made. Also fetched when goals are missed."""
    order = read_spec(spec)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UnusableFolder(f"{out} is not empty; name a new folder with --out.")
    if model is None and "model_id" not in order:
        raise UnusableFolder(f"{spec} names no model_id; give a folder with --model.")
    with connect() as client:
        job = _to_the_end(client, _complete(client, order, model, dataset))
        if job["result"] is not None:
            _fetch(client, job["id"], out)
    if as_json:
        emit({"job": job, "out": str(out) if job["result"] is not None else None})
    else:
        show_result(job)
        if job["result"] is not None:
            typer.echo(str(out))
    raise typer.Exit(of_job(job["status"]))


def _complete(client: Client, order: dict[str, Any], model: Path | None, dataset: Path | None) -> dict[str, Any]:
    """The order with the ids of what was uploaded for it."""
    if model is not None:
        with transfer(f"sending {model}") as progress:
            order |= {"model_id": client.push_model(model, progress=progress)["id"]}
    if dataset is not None:
        task = str(order.get("task", "text-classification"))
        with transfer(f"sending {dataset}") as progress:
            order |= {"dataset_id": client.push_dataset(dataset, task, progress=progress)["id"]}
    return order


def _to_the_end(client: Client, order: dict[str, Any]) -> dict[str, Any]:
    job = client.submit_job(order)
    say(f"{job['id']} queued")
    try:
        with JobDisplay() as display:
            return client.watch_job(job["id"], display.update)
    except KeyboardInterrupt:
        say(f"The job goes on: follow it with `secateur jobs watch {job['id']}`, or end it with `jobs cancel`.")
        raise typer.Exit(INTERRUPTED) from None


def _fetch(client: Client, job_id: str, out: Path) -> None:
    with transfer(f"fetching {job_id}") as progress:
        client.pull_job(job_id, out, progress=progress)
    (out / "report.html").write_bytes(client.job_report(job_id))
