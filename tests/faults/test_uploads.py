"""A model arrives whole, and at the price of one chunk per cut, through a network that breaks and past a killed API.

The long form: `python -m tests.benchmarks.upload_bench`.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from service import client_models
from service.client import AsyncClient, Client
from service.client_files import Progress
from service.config import Settings
from service.intake import partial
from tests.cutting import CuttingProxy, big_model, memory
from tests.live import LiveService

CHUNK = 1 << 20
CUTS = 10
MEGABYTES = 40
HEADS = 1 << 10
"""More than the head of any request of ours."""

Push = Callable[[str, str, Path, Progress], Any]


def push(url: str, key: str, folder: Path, progress: Progress) -> Any:
    """With the synchronous client."""
    with Client(url, key) as client:
        return client.push_model(folder, progress=progress)


def push_async(url: str, key: str, folder: Path, progress: Progress) -> Any:
    """With the asynchronous one."""

    async def go() -> Any:
        async with AsyncClient(url, key) as client:
            return await client.push_model(folder, progress=progress)

    return asyncio.run(go())


@pytest.fixture
def live(settings: Settings, api_key: str) -> Iterator[LiveService]:
    """An API process of its own, without a worker."""
    with LiveService(settings, api_key) as service:
        service.start_api()
        yield service


def kill_and_restart(live: LiveService) -> None:
    """SIGKILL the API. Called by the main thread, as a process that we start dies with the thread that started it."""
    assert live.api is not None
    live.api.kill()
    live.api.wait()
    live.start_api()


@pytest.mark.parametrize("way", [push, push_async], ids=["sync", "async"])
def test_a_cut_costs_a_chunk_and_a_kill_no_byte_that_was_acknowledged(
    live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Push
) -> None:
    monkeypatch.setattr(client_models, "CHUNK", CHUNK)
    folder = big_model(tmp_path / "model", MEGABYTES, shards=5)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert live.api is not None
    at_start, half = memory(live.api.pid)[0], threading.Event()

    def watch(done: int, total: int) -> None:
        if done > total / 2:
            half.set()

    with CuttingProxy(live.port, CUTS, size) as proxy, ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(way, proxy.url, live.api_key, folder, watch)
        assert half.wait(60), pushing
        growth = memory(live.api.pid)[1] - at_start
        kill_and_restart(live)
        model = pushing.result()
    assert proxy.made == CUTS
    sent = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    kept = {file["path"]: file["sha256"] for file in model["files"] if file["path"] in sent}
    assert (model["state"], kept) == ("ready", sent)
    for path, digest in sent.items():
        content = live.client.get(f"/v1/models/{model['id']}/files/{path}").content
        assert sha256(content).hexdigest() == digest
    broken = CUTS + client_models.AT_ONCE  # the kill breaks every connection
    requests = size / CHUNK + 3 * broken + 20
    assert proxy.sent - size <= broken * CHUNK + requests * HEADS
    assert growth < 64 << 20
    assert memory(live.api.pid)[1] < at_start + (64 << 20)


def test_a_client_that_was_killed_goes_on_when_it_comes_again(
    live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(client_models, "CHUNK", CHUNK)
    folder = big_model(tmp_path / "model", 16, shards=2)
    size = sum(path.stat().st_size for path in folder.iterdir())

    def dies(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(live.url, live.api_key, folder, dies)
    (model_id,) = partial.model_ids(settings.scratch)
    seen: list[int] = []
    with CuttingProxy(live.port, 0, 1) as proxy:
        model = push(proxy.url, live.api_key, folder, lambda done, total: seen.append(done))
    assert (model["id"], model["state"]) == (model_id, "ready")
    assert max(seen) == size
    assert proxy.sent < size * 0.6


def test_a_model_that_is_stored_already_is_not_sent_again(live: LiveService, tmp_path: Path) -> None:
    folder = big_model(tmp_path / "model", 16, shards=2)
    first = push(live.url, live.api_key, folder, lambda done, total: None)
    with CuttingProxy(live.port, 0, 1) as proxy:
        second = push(proxy.url, live.api_key, folder, lambda done, total: None)
    assert second["id"] != first["id"]
    assert second["files"] == first["files"]
    assert proxy.sent < 20_000
