"""What commands print: JSON or tables on standard output, progress and messages on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]

Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Compare every file with the manifest.")]

Json = dict[str, Any]


def say(text: str) -> None:
    """A message for the person who waits."""
    typer.echo(text, err=True)


def emit(value: Any) -> None:
    """A value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def deleted(id_: str, *, as_json: bool, word: str = "deleted") -> None:
    """That something is gone."""
    emit({"id": id_, "deleted": True}) if as_json else say(f"{id_} {word}")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Rows under headings; into a pipe without borders and without cutting anything off."""
    piped = not sys.stdout.isatty()
    grid = Table(*columns, title=title, box=None, pad_edge=False, title_justify="left")
    for column in grid.columns:
        column.no_wrap = piped
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=400 if piped else None, highlight=False, markup=False).print(grid, end="\n")


def facts(value: Json, names: Sequence[str]) -> None:
    """Chosen fields of one resource, one per line."""
    for name in names:
        shown = value.get(name)
        if shown is not None:
            typer.echo(f"{name:<16} {shown if not isinstance(shown, dict | list) else json.dumps(shown)}")


def size_of(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def transfer(label: str) -> Any:
    """A bar (on a terminal) or one line at the end (elsewhere) for bytes that move; yields the callback."""
    if not sys.stderr.isatty():
        state = {"done": 0}

        def note(done: int, total: int) -> None:
            state["done"] = done

        yield note
        say(f"{label}: {size_of(state['done'])}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move


class JobDisplay:
    """Follows a job: a bar on a terminal, elsewhere one line per change of status, phase or tenth."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last: tuple[object, ...] = ()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._bar.add_task("queued", total=1.0, note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, job: Json) -> None:
        """Show a new state of the job."""
        what = " ".join(part for part in (job["status"], job["phase"]) if part)
        fraction = job["progress"]["fraction"] or 0.0
        note = _note(job)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=what, completed=fraction, note=note)
            return
        state = (what, int(fraction * 10))
        if state != self._last:
            self._last = state
            say(f"{time.monotonic() - self._started:6.0f} s  {what:<22} {fraction:4.0%}  {note}".rstrip())


def _note(job: Json) -> str:
    progress = job["progress"]
    if job["status"] == "queued" and job["queue"]["position"]:
        return f"number {job['queue']['position']} in the queue"
    parts = []
    if progress["total_steps"]:
        parts.append(f"step {progress['step']} of {progress['total_steps']}")
    if progress["seconds_remaining"]:
        parts.append(f"about {progress['seconds_remaining']:.0f} s to go")
    return ", ".join(parts)


def comparison(result: Json) -> list[tuple[str, str, str, str]]:
    """Rows `(what, before, after, ratio)` of a job's result."""
    before, after = result["before"], result["after"]
    rows = []
    for name, old in before["metrics"].items():
        new = after["metrics"][name]
        rows.append((name, _interval(old), _interval(new), f"{new['value'] - old['value']:+.4f}"))
    plain: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("parameters", "{:,.0f}".format),
        ("nonzero_parameters", "{:,.0f}".format),
        ("flops", "{:,.0f}".format),
        ("size", size_of),
        ("peak_memory", size_of),
    )
    for name, write in plain:
        if before[name] is not None and after[name] is not None:
            rows.append((name, write(before[name]), write(after[name]), _times(before[name], after[name], "smaller")))
    for old, new in zip(before["latency"], after["latency"], strict=True):
        what = f"{old['runtime']} p50, batch {old['batch_size']} x {old['sequence_length']}"
        ratio = _times(old["p50"], new["p50"], "faster")
        rows.append((what, f"{old['p50'] * 1e3:.2f} ms", f"{new['p50'] * 1e3:.2f} ms", ratio))
    return rows


def _interval(metric: Json) -> str:
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


def _times(before: float, after: float, better: str) -> str:
    return f"{before / after:.2f} x {better}" if after else ""


def goal_of(goal: Json) -> str:
    """What an acceptance goal asks for."""
    return ", ".join(f"{name} {value}" for name, value in goal.items() if name != "metric" and value is not None)


def measured_of(line: Json) -> str:
    """What was measured for one line of a verdict."""
    return "not measured" if line["measured"] is None else f"{line['measured']:.4g}"


def trials(inspection: Json) -> list[tuple[str, ...]]:
    """Rows `(structure, criterion, cut, units, score, loss, same)` of what an inspection found."""
    rows: list[tuple[str, ...]] = []
    for one in inspection["scored"]:
        for trial in one["trials"]:
            loss, same = trial["loss"], trial["agreement"]
            found = ("" if loss is None else f"{loss:.4g}", "" if same is None else f"{same:.1%}")
            units = f"{trial['removed']:,} of {trial['of']:,}"
            share, score = f"{trial['ratio']:.0%}", f"{trial['score']:.1%}"
            rows.append((one["structure"], one["criterion"]["kind"], share, units, score, *found))
    return rows


def show_inspection(inspection: Json) -> None:
    """What stands out, and what every trial cost."""
    for line in inspection["highlights"]:
        typer.echo(line)
    if inspection["loss"] is not None:
        typer.echo(f"loss {inspection['loss']:.4g} on {inspection['rows']} rows of {inspection['split']}")
    if inspection["scored"]:
        table(("structure", "criterion", "cut", "units", "score", "loss", "same"), trials(inspection))


def show_result(job: Json) -> None:
    """How a job ended: its before and after, its verdict, its error and its warnings; or what it found in a model."""
    if job.get("inspection") is not None:
        show_inspection(job["inspection"])
    if job["result"] is not None:
        table(("", "before", "after", "change"), comparison(job["result"]))
        for line in job["result"]["verdict"]:
            shown = f"{line['metric']}: {measured_of(line)} ({goal_of(line['goal'])})"
            typer.echo(f"{'passed' if line['passed'] else 'MISSED'}  {shown}")
    for warning in job["warnings"]:
        say(f"warning: {warning['message']} ({warning['code']})")
    if job["error"] is not None:
        say(f"error: {job['error']['message']} ({job['error']['code']})")
    say(f"{job['id']} {job['status']}")
