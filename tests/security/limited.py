"""The corpus in one process of bounded memory: `python -m tests.security.limited FOLDER DATABASE` prints figures."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.app import create_app
from tests.listening import bearer, standalone
from tests.security.corpus import ARCHIVES, CONFIGS, INDEXES, NAMES, PICKLES, SAFETENSORS
from tests.security.requests import DATA, MORE_MODELS, REQUESTS, ask
from tests.security.test_hostile_rows import FIRST_LINE, ROWS
from tests.service.routes import test_datasets, test_models
from tests.service.routes.test_manifests import begin
from tests.uploads import bert_files, tar

LIMIT = 512 << 20


def answers(client: TestClient, folder: Path) -> Iterator[Any]:
    """One by one, what the service says to everything hostile."""
    model = begin(client, bert_files())
    ids = {"model": model["id"], "upload": model["uploads"][0]["upload_url"].rpartition("/")[2]}
    for request in REQUESTS:
        yield ask(client, request, ids)
    for hostile in [*PICKLES, *CONFIGS, *INDEXES, *NAMES, *ARCHIVES, *MORE_MODELS]:
        yield test_models.post(client, hostile.make(folder / "marker"), "application/octet-stream")
    for weights in SAFETENSORS.values():
        yield test_models.post(client, tar(bert_files() | {"model.safetensors": weights()}))
    for data in [*(make() for make in ROWS.values()), *FIRST_LINE.values(), *(data for _, data in DATA.values())]:
        yield test_datasets.post(client, {"train": data})


def main(folder: Path, template: Path) -> dict[str, float]:
    """Ask for everything; the figures. Raises `MemoryError`, or fails otherwise, where 512 MiB do not do."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    settings = standalone(folder, template)
    asked, slowest, started = 0, 0.0, time.monotonic()
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8400", headers=bearer(settings)) as client:
        for answer in answers(client, folder):
            assert 400 <= answer.status_code < 500, answer.text
            slowest, started = max(slowest, time.monotonic() - started), time.monotonic()
            asked += 1
    assert not (folder / "marker").exists()
    return {"requests": asked, "slowest_seconds": round(slowest, 3), "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Most memory that this process ever held; `ru_maxrss` would begin with what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
