"""Uploads that are too large, or that break off, against a real server: flat memory, nothing kept, a clear answer."""

import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.config import Settings
from tests.live import LiveService
from tests.service.routes.test_models import stored
from tests.uploads import bert_files, form, member, tar

PIECE = bytes(1 << 20)


@pytest.fixture
def api(settings: Settings, api_key: str) -> Iterator[LiveService]:
    """An API process that takes at most 40 MB an upload."""
    with LiveService(settings.model_copy(update={"max_upload_bytes": 40_000_000}), api_key) as service:
        service.start_api()
        yield service


def _peak_memory(service: LiveService) -> int:
    assert service.api is not None
    status = Path(f"/proc/{service.api.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def _endless_tar() -> Iterator[bytes]:
    yield member("model.safetensors", size=30_000_000).tobuf(tarfile.USTAR_FORMAT)
    for _ in range(60):
        yield PIECE


def _honest_but_large() -> Iterator[bytes]:
    yield member("model.safetensors", size=60_000_000).tobuf(tarfile.USTAR_FORMAT)
    for _ in range(60):
        yield PIECE


def _one_line() -> Iterator[bytes]:
    body, _ = form({"train": b'{"text": "'})
    yield body[: body.index(b'{"text": "') + 10]
    for _ in range(60):
        yield b"a" * (1 << 20)


@pytest.mark.parametrize(
    ("path", "kind", "make", "status", "code"),
    [
        ("/v1/models", "application/x-tar", _honest_but_large, 413, "MODEL_TOO_LARGE"),
        ("/v1/models", "application/x-tar", _endless_tar, 400, "ARCHIVE_MALFORMED"),
        (
            "/v1/datasets?name=x&task=text-classification",
            "multipart/form-data; boundary=limit",
            _one_line,
            422,
            "ROW_INVALID",
        ),
    ],
)
def test_a_chunked_flood_is_answered_and_forgotten(
    api: LiveService,
    settings: Settings,
    path: str,
    kind: str,
    make: Callable[[], Iterator[bytes]],
    status: int,
    code: str,
) -> None:
    api.client.get("/v1/models")
    before = _peak_memory(api)
    answer = api.client.post(path, content=make(), headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert _peak_memory(api) - before < 50 << 20
    assert stored(settings) == []


def test_a_declared_size_above_the_limit_is_refused_unread(api: LiveService, settings: Settings) -> None:
    headers = {"Content-Type": "application/x-tar", "Content-Length": str(50 << 20)}
    answer = api.client.post("/v1/models", content=iter([PIECE] * 50), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "MODEL_TOO_LARGE")
    assert stored(settings) == []


def test_a_client_that_goes_leaves_nothing(api: LiveService, settings: Settings) -> None:
    request = (
        f"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nAuthorization: Bearer {api.api_key}\r\n"
        "Content-Type: application/x-tar\r\nContent-Length: 20000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(request.encode() + member("model.safetensors", size=19_000_000).tobuf() + PIECE * 5)
        _wait_for(lambda: bool(stored(settings)))
    _wait_for(lambda: not stored(settings) and not list((settings.scratch / "uploads").iterdir()))
    assert api.client.get("/healthz").status_code == 200
    assert api.client.get("/v1/models").json()["data"] == []


def test_a_killed_upload_is_swept_at_the_next_start(api: LiveService, settings: Settings) -> None:
    def slow() -> Iterator[bytes]:
        yield member("model.safetensors", size=19_000_000).tobuf()
        for _ in range(5):
            yield PIECE
        _wait_for(lambda: bool(stored(settings)))
        assert api.api is not None
        api.api.kill()
        api.api.wait()
        for _ in range(50):
            yield PIECE

    with pytest.raises(httpx.TransportError):
        api.client.post("/v1/models", content=slow(), headers={"Content-Type": "application/x-tar"})
    assert stored(settings) != []
    api.start_api()
    assert stored(settings) == []


def test_a_full_disk_is_507(settings: Settings, api_key: str) -> None:
    huge = settings.model_copy(update={"disk_reserve_bytes": 1 << 60})
    with LiveService(huge, api_key) as service:
        service.start_api()
        answer = service.client.post(
            "/v1/models", content=tar(bert_files()), headers={"Content-Type": "application/x-tar"}
        )
        assert (answer.status_code, answer.json()["code"]) == (507, "NO_SPACE")
    assert stored(settings) == []


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
