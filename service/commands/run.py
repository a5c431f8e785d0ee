"""`secateur run`: the whole way from a model on disk to a smaller one on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import Client, UnusableFolder
from service.client_files import read_spec
from service.commands.connect import connect
from service.commands.exits import of_job
from service.commands.follow import STANDARD_OUTPUT, Junit, Markdown, check_files, follow, write_files
from service.commands.show import AsJson, Verify, emit, say, show_result, transfer
from service.commands.verdict_files import verdict


def run(
    spec: Annotated[Path, typer.Option(help="JSON file: the job; may leave out model_id and dataset_id.")],
    out: Annotated[Path, typer.Option(help="Folder for the pruned model and the report; new or empty.")],
    model: Annotated[Path | None, typer.Option(help="Hugging Face directory to prune.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Folder with train.jsonl, validation.jsonl, test.jsonl.")] = None,
    verify: Verify = True,
    junit: Junit = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Push a model and a data set, run a job, fetch and verify what it made. Also fetched when goals are missed.

    The exit code is a gate: 0 all goals met, 3 failed, 4 a goal missed, 5 cancelled, 6 the service cannot be reached.
    """
    order = read_spec(spec)
    check_files(junit, markdown, as_json=as_json)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UnusableFolder(f"{out} is not empty; name a new folder with --out.")
    if model is None and "model_id" not in order:
        raise UnusableFolder(f"{spec} names no model_id; give a folder with --model.")
    with connect() as client:
        job = client.submit_job(_complete(client, order, model, dataset))
        say(f"{job['id']} queued")
        job = follow(client, job["id"])
        write_files(job, junit, markdown)
        if job["result"] is not None:
            _fetch(client, job["id"], out, verify)
    if as_json:
        emit({"job": job, "out": str(out) if job["result"] is not None else None, "verdict": verdict(job)})
    elif markdown != STANDARD_OUTPUT:
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


def _fetch(client: Client, job_id: str, out: Path, verify: bool) -> None:
    with transfer(f"fetching {job_id}") as progress:
        client.pull_job(job_id, out, verify=verify, progress=progress)
    (out / "report.html").write_bytes(client.job_report(job_id))
