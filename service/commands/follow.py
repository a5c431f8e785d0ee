"""A job to its end: shown while it runs, told when it has ended, in files for machines too where they are asked for."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.client import Client, UnusableFolder
from service.commands.exits import INTERRUPTED, of_job
from service.commands.show import JobDisplay, Json, emit, say, show_result
from service.commands.verdict_files import junit as junit_of
from service.commands.verdict_files import markdown as markdown_of

STANDARD_OUTPUT = "-"

Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdict as JUnit XML, a test case per goal.")
]
Markdown = Annotated[
    str | None,
    typer.Option("--markdown", metavar="FILE", help="Append a summary as Markdown; - prints it instead of tables."),
]


def check_files(junit: Path | None, markdown: str | None, *, as_json: bool) -> None:
    """Before a long job: can its verdict be written? Raises `UnusableFolder`."""
    if markdown == STANDARD_OUTPUT and as_json:
        raise UnusableFolder("--json and --markdown - cannot both have standard output; name a file.")
    for file in (junit, None if markdown in (None, STANDARD_OUTPUT) else Path(str(markdown))):
        if file is not None:
            _try(file)


def _try(file: Path) -> None:
    existed = file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a"):
            pass
        if not existed:
            file.unlink()
    except OSError as error:
        raise UnusableFolder(f"{file} cannot be written: {error.strerror}.") from error


def follow(client: Client, job_id: str) -> Json:
    """Show a job until it has ended; an interrupt leaves it alone and ends the command with 130."""
    try:
        with JobDisplay() as display:
            return client.watch_job(job_id, display.update)
    except KeyboardInterrupt:
        say(f"The job goes on: follow it with `secateur jobs watch {job_id}`, or end it with `jobs cancel`.")
        raise typer.Exit(INTERRUPTED) from None


def write_files(job: Json, junit: Path | None, markdown: str | None) -> None:
    """The files that were asked for."""
    if junit is not None:
        junit.write_text(junit_of([job]), encoding="utf-8")
    if markdown == STANDARD_OUTPUT:
        typer.echo(markdown_of(job), nl=False)
    elif markdown is not None:
        with Path(markdown).open("a", encoding="utf-8") as file:
            file.write(markdown_of(job))


def conclude(job: Json, *, as_json: bool, junit: Path | None = None, markdown: str | None = None) -> NoReturn:
    """Tell how a job ended, and end the command with its exit code."""
    write_files(job, junit, markdown)
    if as_json:
        emit(job)
    elif markdown != STANDARD_OUTPUT:
        show_result(job)
    raise typer.Exit(of_job(job["status"]))
