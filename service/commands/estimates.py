"""`secateur jobs estimate`: what a job would take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.client_files import read_spec
from service.commands.connect import connect
from service.commands.show import AsJson, emit, say, size_of


def estimate(
    spec: Annotated[Path, typer.Argument(help="JSON file: the job, with model_id and dataset_id.")],
    as_json: AsJson = False,
) -> None:
    """Tell how long a job would take, what it needs and whether the service has room for it; queue nothing."""
    with connect() as client:
        found = client.estimate_job(read_spec(spec))
    if as_json:
        emit(found)
        return
    for line in described(found):
        typer.echo(line)
    for reason in found["reasons"]:
        say(f"{reason['code']}: {reason['message']}")


def described(found: dict[str, Any]) -> list[str]:
    """An estimate in words."""
    seconds, expected = found["seconds"], found["expected"]
    lines = [
        f"time        {_time(seconds['low'])} to {_time(seconds['high'])} on {found['device']}",
        f"memory      {size_of(found['memory'])}",
        f"disk        {size_of(found['disk'])}",
        f"parameters  {_count(expected['parameters'])}",
        f"size        {_count(expected['size'], size_of)}",
        f"FLOPs       {_count(expected['flops'])}",
        f"fits        {'yes' if found['fits'] else 'no'}",
    ]
    if not found["learned_from"]:
        lines.append("No job has finished on such a device yet, so time and memory are rough.")
    return lines


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _count(found: dict[str, int] | None, shown: Any = "{:,}".format) -> str:
    if found is None:
        return "cannot be told beforehand"
    low, high = shown(found["low"]), shown(found["high"])
    return low if low == high else f"{low} to {high}"
