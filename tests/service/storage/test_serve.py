import base64
import hashlib
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from service import problems
from service.observe import Telemetry
from service.storage.disposition import disposition
from service.storage.serve import serve

DATA = bytes(range(256)) * 4
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA256}"'


@pytest.fixture(scope="module")
def files() -> TestClient:
    app = FastAPI()
    problems.install(app)
    app.state.telemetry = Telemetry()

    def read(start: int, length: int) -> Iterator[bytes]:
        for at in range(start, start + length, 100):
            yield DATA[at : min(at + 100, start + length)]

    @app.api_route("/file", methods=["GET", "HEAD"])
    def file(request: Request) -> Response:
        return serve(
            request,
            size=len(DATA),
            sha256=SHA256,
            media_type="application/octet-stream",
            filename="f.bin",
            read=read,
        )

    return TestClient(app)


def test_the_whole_file_with_its_digests(files: TestClient) -> None:
    answer = files.get("/file")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == ETAG
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert answer.headers["content-length"] == "1024"
    assert answer.headers["accept-ranges"] == "bytes"
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-", 0, 1024),
        ("bytes=0-0", 0, 1),
        ("bytes=1000-5000", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=-5000", 0, 1024),
        ("bytes=200-399", 200, 400),
    ],
)
def test_one_range(files: TestClient, asked: str, start: int, end: int) -> None:
    answer = files.get("/file", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"] == ETAG


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_outside_is_416_with_the_size(files: TestClient, asked: str) -> None:
    answer = files.get("/file", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1024"
    assert answer.json()["code"] == "RANGE_NOT_SATISFIABLE"


@pytest.mark.parametrize(
    "asked", ["bytes=5-2", "bytes=-", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", f"bytes={'9' * 5000}-"]
)
def test_a_range_that_means_nothing_is_ignored(files: TestClient, asked: str) -> None:
    answer = files.get("/file", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize(("tag", "status"), [(ETAG, 206), ('"other"', 200), ("Tue, 24 Nov 2026 06:42:20 GMT", 200)])
def test_if_range_guards_a_resumed_download(files: TestClient, tag: str, status: int) -> None:
    assert files.get("/file", headers={"Range": "bytes=10-", "If-Range": tag}).status_code == status


@pytest.mark.parametrize("tag", [ETAG, f'"x", W/{ETAG}', "*"])
def test_what_the_client_has_is_not_sent_again(files: TestClient, tag: str) -> None:
    answer = files.get("/file", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == ETAG


def test_head_tells_the_size(files: TestClient) -> None:
    answer = files.head("/file")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "1024")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", 'a"; filename="evil', "a\r\nSet-Cookie: x=1", "\0", "CON", "\u202egnp.exe", "x" * 300]
)
def test_no_name_breaks_out_of_the_header(name: str) -> None:
    value = disposition(name)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) < 2500
    assert value.count('"') == 2
    assert "/" not in value
