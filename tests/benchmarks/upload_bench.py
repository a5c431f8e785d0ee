"""What a broken network costs an upload: `python -m tests.benchmarks.upload_bench [--megabytes N] [--cuts N]`.

Sends a model of that size through a proxy that resets connections at random points, and kills the API once, half-way.
Prints the bytes of the model, those that went over the wire, what was sent again for each cut, the time, and how much
the memory of the API grew; then the time and memory of the same without any cut. Real processes on the loopback.
"""

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from service.auth import issue_key
from service.client import Client
from service.client_files import Progress
from service.client_models import AT_ONCE, CHUNK
from service.config import Settings
from service.db import Database
from tests.cutting import CuttingProxy, big_model, memory
from tests.databases import migrate
from tests.live import LiveService
from tests.servers import valkey


def main() -> None:
    """Set the service up in a throw-away folder, send, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as name, valkey() as broker:
        folder = Path(name)
        with LiveService(*prepared(folder, broker.url)) as live:
            broken = big_model(folder / "broken", arguments.megabytes, arguments.shards)
            through_cuts(live, broken, arguments.cuts, arguments.seed)
            whole = big_model(folder / "whole", arguments.megabytes, arguments.shards)
            without_cuts(live, whole)


def prepared(folder: Path, broker_url: str) -> tuple[Settings, str]:
    """Settings of a migrated service, and a key."""
    settings = Settings(
        data_dir=folder / "data",
        database_url=SecretStr(f"sqlite:///{folder}/secateur.db"),
        broker_url=SecretStr(broker_url),
    )
    migrate(settings.database)
    database = Database(settings.database)
    with database.session_scope() as session:
        key = issue_key(session, tenant="default", name="bench", scopes=["admin"])[1]
    database.dispose()
    return settings, key


def through_cuts(live: LiveService, folder: Path, cuts: int, seed: int) -> None:
    """Push past cuts and a kill."""
    live.start_api()
    size, half = size_of(folder), threading.Event()
    growth = Growth(live)

    def watch(done: int, total: int) -> None:
        if done > total / 2:
            half.set()

    with CuttingProxy(live.port, cuts, size, seed) as proxy, ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        pushing = pool.submit(push, proxy.url, live.api_key, folder, watch)
        while not half.wait(1) and not pushing.done():
            pass
        growth.note()
        assert live.api is not None
        live.api.kill()
        live.api.wait()
        live.start_api()
        after = Growth(live)
        model = pushing.result()
        seconds = time.monotonic() - begun
        after.note()
    verify(folder, model)
    again = proxy.sent - size
    print(f"model                   {size:>15,} bytes")
    print(f"sent                    {proxy.sent:>15,} bytes, heads of requests included")
    print(f"sent again              {again:>15,} bytes, {again / (proxy.made + AT_ONCE) / CHUNK:.2f} chunks per broken")
    print(f"                        connection: {proxy.made} cuts, and the {AT_ONCE} that a kill of the API breaks")
    print(f"time                    {seconds:>15.1f} s, the API's restart included")
    print(f"growth of the API       {max(growth.most, after.most) / 2**20:>15.1f} MiB")


def without_cuts(live: LiveService, folder: Path) -> None:
    """The same size through an API that lives."""
    assert live.api is not None
    growth = Growth(live)
    begun = time.monotonic()
    verify(folder, push(live.url, live.api_key, folder, lambda done, total: None))
    seconds, size = time.monotonic() - begun, size_of(folder)
    growth.note()
    print(f"without cuts            {seconds:>15.1f} s, {size / seconds / 1e6:.0f} MB/s with hashing and checks")
    print(f"growth of the API       {growth.most / 2**20:>15.1f} MiB")


class Growth:
    """How far the memory of the running API rises above what it is now."""

    def __init__(self, live: LiveService) -> None:
        assert live.api is not None
        self._pid = live.api.pid
        self._start = memory(self._pid)[0]
        self.most = 0

    def note(self) -> None:
        """Read the peak; the process must still be there."""
        self.most = memory(self._pid)[1] - self._start


def push(url: str, key: str, folder: Path, progress: Progress) -> Any:
    """As `secateur models push` does."""
    with Client(url, key) as client:
        return client.push_model(folder, progress=progress)


def size_of(folder: Path) -> int:
    """Bytes of a model's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def verify(folder: Path, model: Any) -> None:
    """What is stored is what was sent."""
    kept = {file["path"]: file["sha256"] for file in model["files"]}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            assert kept[path.name] == file_digest(file, "sha256").hexdigest(), path.name


if __name__ == "__main__":
    main()
