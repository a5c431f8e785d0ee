"""A byte that changed on the disk, or a file that is lost, is never taken for what was stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service import client_downloads
from service.client import Client
from service.client_calls import Unreachable
from service.config import Settings
from service.errors import Conflict, InternalError
from service.storage.serve import READ_FIRST_BYTES
from service.tables import Job
from tests.cutting import big_model
from tests.faults import stores
from tests.faults.test_publishing import outcomes, prepared, queued
from tests.live import LiveService
from tests.workers.conftest import make_job

__all__ = ["make_job", "prepared", "queued"]

HELD = 256 << 10
"""What is kept back until all has been read."""


@dataclass(frozen=True)
class Rotten:
    """A live service with a model of two large files and some small ones."""

    live: LiveService
    model: dict[str, Any]

    def path(self, name: str) -> Path:
        """Where a file of the model lies."""
        return Path(self.live.settings.storage.removeprefix("file://"), "models", self.model["id"], name)

    def url(self, name: str | None) -> str:
        """Where it can be had; None for the archive."""
        return f"/v1/models/{self.model['id']}/" + ("archive" if name is None else f"files/{name}")

    def fetch(self, name: str | None, **headers: str) -> tuple[int, int, bool]:
        """Status, bytes that came, and whether the answer came to its end."""
        came = 0
        with self.live.client.stream("GET", self.url(name), headers=headers) as answer:
            try:
                for piece in answer.iter_raw():
                    came += len(piece)
            except httpx.RemoteProtocolError:
                return answer.status_code, came, False
        return answer.status_code, came, True

    def problem(self, name: str | None, **headers: str) -> tuple[int, str]:
        """Status and code of an answer that is an error."""
        answer = self.live.client.get(self.url(name), headers=headers)
        return answer.status_code, answer.json()["code"]

    def damaged(self) -> float:
        """Damaged files that downloads have met."""
        lines = self.live.client.get("/metrics").text.splitlines()
        (value,) = [
            line.split()[-1] for line in lines if line.startswith('secateur_damaged_files_total{by="download"}')
        ]
        return float(value)


@pytest.fixture
def rotten(settings: Settings, api_key: str, tmp_path: Path) -> Iterator[Rotten]:
    """An API process of its own."""
    with LiveService(settings, api_key) as live:
        live.start_api()
        with Client(live.url, api_key) as client:
            model = client.push_model(big_model(tmp_path / "model", 2 * READ_FIRST_BYTES // 10**6, 1))
        yield Rotten(live, model)


@contextmanager
def flipped(path: Path, at: int) -> Iterator[None]:
    """One bit of a file is another one."""
    flip(path, at)
    yield
    flip(path, at)


def flip(path: Path, at: int) -> None:
    """Change one bit, and leave the file the one that it is."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_changed_or_lost_small_file_is_told_by_a_problem(rotten: Rotten) -> None:
    path = rotten.path("config.json")
    size = path.stat().st_size
    kept = path.read_bytes()
    for at in (0, size // 2, size - 1):
        with flipped(path, at):
            assert rotten.problem("config.json") == (500, "ARTIFACT_CORRUPT")
            assert rotten.problem("config.json", Range=f"bytes={size - 1}-") == (500, "ARTIFACT_CORRUPT")
            assert rotten.problem("config.json", Range="bytes=-1") == (500, "ARTIFACT_CORRUPT")
    path.write_bytes(kept[:-1])
    assert rotten.problem("config.json") == (500, "ARTIFACT_CORRUPT")
    path.unlink()
    assert rotten.problem("config.json") == rotten.problem(None) == (500, "ARTIFACT_MISSING")
    assert rotten.live.client.head(rotten.url(None)).status_code == 500
    assert rotten.damaged() == 3 * 3 + 4
    assert "ARTIFACT_CORRUPT at /v1/models/" in rotten.live.log() and "has lost models/" in rotten.live.log()
    path.write_bytes(kept)
    assert rotten.fetch("config.json") == (200, size, True)
    assert rotten.fetch(None)[2]


def test_the_end_of_a_large_file_does_not_come_when_it_has_changed(rotten: Rotten) -> None:
    name = "model-00001.safetensors"
    path = rotten.path(name)
    size = path.stat().st_size
    assert size > READ_FIRST_BYTES
    for at in (0, size // 2, size - 1):
        with flipped(path, at):
            for begin in (0, 1, size // 2 + 1, size - 100_000):
                status, came, ended = rotten.fetch(name, Range=f"bytes={begin}-")
                assert (status, ended) == (206, False)
                assert came <= max(0, size - begin - HELD)
            status, came, ended = rotten.fetch(name)
            assert (status, ended) == (200, False) and came <= size - HELD
            assert rotten.fetch(name, Range="bytes=100-200") == (206, 101, True)
            status, _, ended = rotten.fetch(None)
            assert (status, ended) == (200, False)
    assert rotten.fetch(name) == (200, size, True)
    assert rotten.fetch(name, Range=f"bytes={size - 10}-") == (206, 10, True)


def test_the_client_keeps_nothing_of_a_damaged_model(
    rotten: Rotten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_downloads, "PAUSE", 0.01)
    out = tmp_path / "out"
    damage, refused = flipped(rotten.path("model-00001.safetensors"), 99), pytest.raises((Unreachable, InternalError))
    with Client(rotten.live.url, rotten.live.api_key) as client, damage, refused:
        client.pull_model(rotten.model["id"], out)
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]


def test_damaged_content_that_other_models_share_is_sent_again(rotten: Rotten, tmp_path: Path) -> None:
    name = "model-00001.safetensors"
    flip(rotten.path(name), 99)
    with Client(rotten.live.url, rotten.live.api_key) as client:
        with pytest.raises(Conflict) as caught:
            client.push_model(tmp_path / "model")
        assert caught.value.code == "UPLOAD_INCOMPLETE"
        model = client.push_model(tmp_path / "model")
        assert model["files"] == rotten.model["files"] and model["id"] != rotten.model["id"]
        assert {path.name for path in client.pull_model(model["id"], tmp_path / "out")} >= {name}


def test_a_job_does_not_begin_with_a_damaged_input(
    queued: Settings, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (weights,) = (queued.data_dir / "storage/models").glob("*/model.safetensors")
    with flipped(weights, 3), stores.opened(queued) as database:
        stores.attempt(queued, prepared)()
        assert outcomes(database) == ["failed"]
        with database.session_scope(read_only=True) as session:
            error = session.scalars(select(Job)).one().error
    assert error is not None and (error["code"], error["blame"]) == ("INPUT_CORRUPT", "service")
