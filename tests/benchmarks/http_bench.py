"""How much the service adds to the bare work: `python -m tests.benchmarks.http_bench [--megabytes N]`.

Prints, from one run with the rivals interleaved: upload and download of a model against copying the same bytes and
hashing them (SHA-256), and the p50 of `GET /v1/jobs/{id}` against an empty route of FastAPI on the same server. Real
uvicorn processes on the loopback; SQLite; medians of the repetitions.
"""

import argparse
import hashlib
import io
import json
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.processes import start, stop
from tests.databases import migrate
from tests.live import LiveService
from tests.models import tiny_dataset, tiny_model
from tests.servers import free_port, valkey

empty = FastAPI()


@empty.get("/")
def nothing() -> dict[str, str]:
    """The least that FastAPI can do."""
    return {}


def main() -> None:
    """Set the service up in a throw-away folder, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the model that goes up and down")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as name, valkey() as broker:
        folder = Path(name)
        settings = Settings(
            data_dir=folder / "data",
            database_url=SecretStr(f"sqlite:///{folder}/secateur.db"),
            broker_url=SecretStr(broker.url),
        )
        migrate(settings.database)
        database = Database(settings.database)
        with database.session_scope() as session:
            key = issue_key(session, tenant="default", name="bench", scopes=["admin"])[1]
        with LiveService(settings, key) as service:
            service.start_api()
            transfer(service.client, folder, arguments.megabytes, arguments.repetitions)
            status_reads(service.client, folder)


def median_seconds(work: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median of each, one after the other in every repetition, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, action in work.items():
            begun = time.perf_counter()
            action()
            if repetition:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def transfer(client: httpx.Client, folder: Path, megabytes: int, repetitions: int) -> None:
    """Upload and download against a copy with its hash."""
    archive = folder / "model.tar"
    archive.write_bytes(padded_model(folder / "big", megabytes))
    models: list[str] = []

    def upload() -> None:
        with archive.open("rb") as body:
            answer = client.post("/v1/models", content=body, headers={"Content-Type": "application/x-tar"}, timeout=600)
        assert answer.status_code == 201, answer.text
        models.append(answer.json()["id"])

    def download() -> None:
        digest = hashlib.sha256()
        with client.stream("GET", f"/v1/models/{models[-1]}/archive", timeout=600) as answer:
            for piece in answer.iter_bytes(1 << 20):
                digest.update(piece)
        assert answer.headers["etag"] == f'"{digest.hexdigest()}"'

    def copy() -> None:
        shutil.copyfile(archive, folder / "copy.tar")
        with (folder / "copy.tar").open("rb") as file:
            hashlib.file_digest(file, "sha256")

    took = median_seconds({"copy": copy, "upload": upload, "download": download}, repetitions)
    size = archive.stat().st_size / 1e6
    for name, seconds in took.items():
        print(f"{name:28} {seconds:8.2f} s  {size / seconds:7.0f} MB/s  {seconds / took['copy']:6.2f} x copy + sha256")


def padded_model(folder: Path, megabytes: int) -> bytes:
    """A valid archive of about that size: a tiny model whose weights carry one large extra tensor."""
    tiny_model(folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = len(data) - 8 - length
    header["padding"] = {"dtype": "F32", "shape": [megabytes * 250_000], "data_offsets": [at, at + megabytes * 10**6]}
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + bytes(megabytes * 10**6))
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(folder, arcname="model")
    return held.getvalue()


def status_reads(client: httpx.Client, folder: Path) -> None:
    """A job's status against an empty route."""
    port = free_port()
    rival = start(
        [sys.executable, "-m", "uvicorn", "tests.benchmarks.http_bench:empty", "--port", str(port),
         "--log-level", "warning"]
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as bare:
            until_it_answers(bare)
            path = f"/v1/jobs/{queued_job(client, folder)}"
            work = {"empty route": lambda: bare.get("/"), "GET /v1/jobs/{id}": lambda: client.get(path)}
            took = median_seconds(work, 500)
    finally:
        stop(rival, grace=5)
    for name, seconds in took.items():
        print(f"{name:28} {seconds * 1000:8.2f} ms p50 {seconds / took['empty route']:11.2f} x empty route")


def until_it_answers(client: httpx.Client) -> None:
    """Wait for a server that is starting."""
    for _ in range(600):
        try:
            client.get("/")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError("the empty route did not start")


def queued_job(client: httpx.Client, folder: Path) -> str:
    """A job that waits: no worker runs here."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(tiny_model(folder / "small"), arcname="model")
    kind = {"Content-Type": "application/x-tar"}
    model = client.post("/v1/models", content=held.getvalue(), headers=kind).json()["id"]
    splits = {path.stem: path.read_bytes() for path in tiny_dataset(folder / "rows").glob("*.jsonl")}
    naming = {"name": "bench", "task": "text-classification"}
    data = client.post("/v1/datasets", params=naming, files=splits).json()["id"]
    order = {
        "name": "bench",
        "model_id": model,
        "dataset_id": data,
        "task": "text-classification",
        "pruning": {"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}]},
        "benchmark": None,
        "max_length": 16,
    }
    answer = client.post("/v1/jobs", json=order)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


if __name__ == "__main__":
    main()
