"""Requests that break parsers, byte by byte over real sockets: never a 5xx, and the service goes on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.config import Settings
from tests.listening import Listening, bearer, listening, standalone
from tests.servers import PostgreSQL
from tests.service.published import Published, publish

NUMBERS = ["NaN", "Infinity", "-1", "0", "1e999", str(2**63), str(2**70), "9" * 5000, "0x10", "1.5", "", "--1"]
TEXTS = """%00 %ff % %zz %ed%a0%80 %F0%9F%98%80 %0d%0a %27%3B-- ..%2f..%2f [] {{7*7}} %D9%A1 true null""".split()
TEXTS += ["a" * 8000]
PARAMETERS = "limit cursor status model_id name created_after created_before metadata[a] metadata[ after key_id".split()
RANGES = [
    "bytes=-1", "bytes=0-", "bytes=5-1", "bytes=-0", "bytes=99999999999999999999-", "bytes=0-0,0-0", "bytes=a-b",
    "bytes=", "bytes", "items=0-1", "bytes=" + ",".join(["0-1"] * 2000), "bytes=\u0661-", "bytes=--1", "bytes=1-\t2",
]  # fmt: skip
CONDITIONS = ['"', '"a', "W/", "*", "a, b, c", '"' + "a" * 5000 + '"', "\xff", "Thu, 99 Foo 2026 99:99:99 GMT"]
METHODS = ["PROPFIND", "TRACE", "CONNECT", "LINK", "M-SEARCH", "PURGE", "SOURCE", "OPTIONS", "HEAD", "DELETE", "PUT"]
PATHS = [
    "/..", "/%2e%2e", "/%2e%2e/%2e%2e/etc/passwd", "/v1/..%2f..%2fetc/passwd", "//", "//evil.example/v1/models",
    "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/..;/keys", "/v1/jobs/%", "/v1//jobs", "/v1/jobs/", "/V1/JOBS",
    "/v1/models/{model}/files/..%2fmodel.safetensors", "/v1/models/{model}/files/", "/v1/models/{model}/files/%00",
    "/v1/jobs/{job}/events/stream?after=%00", "/v1/jobs:estimate:", "/v1/models/{model}/files/" + "a/" * 3000,
    "http://evil.example/v1/models", "/?" + "&".join(f"a{number}=1" for number in range(5000)), "*", "/#", "/\\..\\",
]  # fmt: skip


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    postgresql_server: PostgreSQL,
    postgresql_template: str,
) -> Iterator[Settings]:
    """Settings of the service that all requests go to, over PostgreSQL: it takes less than SQLite does."""
    name = postgresql_server.create(postgresql_template)
    url = SecretStr(postgresql_server.url(name))
    yield standalone(tmp_path_factory.mktemp("hard"), sqlite_template, database_url=url)
    postgresql_server.drop(name)


@pytest.fixture(scope="module")
def api(settings: Settings) -> Iterator[Listening]:
    """That service."""
    with listening(settings) as service:
        yield service


@pytest.fixture(scope="module")
def published(api: Listening, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A finished job, its model and its artifacts."""
    return publish(api.app, tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def still_well(api: Listening) -> Iterator[None]:
    """Whatever came, the service answers."""
    yield
    assert httpx.get(f"{api.url}/healthz", trust_env=False).status_code == 200


def status(api: Listening, settings: Settings, line: str, headers: str = "", body: bytes = b"") -> int:
    """Send a request as it stands; the status of the first answer, 0 when the connection is closed without one."""
    auth = f"Authorization: {bearer(settings)['Authorization']}\r\n"
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{auth}{headers}\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        connection.sendall(head.encode("utf-8", "surrogateescape") + body)
        received = connection.recv(65536)
    return int(received.split()[1]) if received else 0


def test_every_parameter_of_every_list_takes_anything(api: Listening, settings: Settings) -> None:
    answers = {
        (path, name, value): status(api, settings, f"GET {path}?{name}={value}")
        for path in ("/v1/jobs", "/v1/models", "/v1/datasets", "/v1/audit")
        for name in PARAMETERS
        for value in [*NUMBERS, *TEXTS]
    }
    assert {asked: got for asked, got in answers.items() if got not in (200, 400, 404, 422)} == {}


@pytest.mark.parametrize("path", ["metrics?resolution=", "metrics?name=", "events?after=", "events?limit="])
def test_records_of_a_job_take_anything(api: Listening, settings: Settings, published: Published, path: str) -> None:
    job = f"/v1/jobs/{published.job.id}"
    answers = {value: status(api, settings, f"GET {job}/{path}{value}") for value in [*NUMBERS, *TEXTS]}
    assert {value: got for value, got in answers.items() if got not in (200, 400, 422)} == {}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_paths(api: Listening, settings: Settings, published: Published, method: str, path: str) -> None:
    ids = {"model": published.model.id, "job": published.job.id}
    line = f"{method} {path.format(**ids) if '{model}' in path or '{job}' in path else path}"
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    assert 200 <= status(api, settings, line, length) < 500
    assert httpx.get(f"{api.url}/v1/models/{published.model.id}", headers=bearer(settings), trust_env=False).is_success


@pytest.mark.parametrize("method", METHODS)
def test_methods(api: Listening, settings: Settings, method: str) -> None:
    for path in ("/v1/models", "/healthz", "/nowhere"):
        assert 200 <= status(api, settings, f"{method} {path}") < 500


@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize("path", ["/v1/artifacts/{artifact}/content", "/v1/models/{model}/archive"])
def test_ranges(api: Listening, settings: Settings, published: Published, path: str, range_: str) -> None:
    artifact = published.artifacts["huggingface/model.safetensors"].id
    line = f"GET {path.format(artifact=artifact, model=published.model.id)}"
    assert status(api, settings, line, f"Range: {range_}\r\n") in (200, 206, 416)


@pytest.mark.parametrize("value", CONDITIONS)
@pytest.mark.parametrize(
    "name", ["If-None-Match", "If-Range", "If-Modified-Since", "Prefer", "Accept", "Last-Event-ID"]
)
def test_conditions(api: Listening, settings: Settings, published: Published, name: str, value: str) -> None:
    for path in (f"/v1/jobs/{published.job.id}", f"/v1/models/{published.model.id}/archive"):
        assert status(api, settings, f"GET {path}", f"{name}: {value}\r\nRange: bytes=0-1\r\n") < 500


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Type: \r\n",
        "Content-Type: multipart/form-data\r\n",
        "Content-Type: multipart/form-data; boundary=\r\n",
        "Content-Type: application/json; charset=utf-7\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "Content-Type: application/zip\r\nRepr-Digest: sha-256=:%%%:\r\n",
        "Content-Type: application/zip\r\nRepr-Digest: sha-256=:AA==:, sha-256=:AA==:\r\n",
        "Content-Type: application/json\r\nIdempotency-Key: \r\n",
        "Content-Type: application/json\r\nIdempotency-Key: \xff\r\n",
        "Content-Type: application/json\r\nX-Request-Id: \x00\r\n",
        "Content-Type: application/json\r\nExpect: nonsense\r\n",
        "Content-Type: application/json\r\nTransfer-Encoding: gzip\r\n",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked, chunked\r\n",
        "Content-Type: application/json\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
        "Authorization: Bearer a\r\n",
        "Cookie: " + "a=b; " * 5000 + "\r\n",
        " folded: header\r\n",
        ": no name\r\n",
        "no colon\r\n",
        "Host: other\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/jobs", "/v1/datasets?name=a&task=causal-lm"])
def test_headers(api: Listening, settings: Settings, path: str, headers: str) -> None:
    assert 400 <= status(api, settings, f"POST {path}", f"{headers}Content-Length: 2\r\n", b"{}") < 500


@pytest.mark.parametrize(
    "value",
    ["\\ud800", "\\u0000", "1" * 5000, "[" * 5000, "NaN", "1e999", str(2**70), '{"a":1,"a":2}', "-0", "1E400", "\\x"],
)
def test_bodies(api: Listening, settings: Settings, value: str) -> None:
    for path in ("/v1/jobs", "/v1/jobs:estimate", "/v1/models", "/v1/keys", "/v1/webhook_endpoints"):
        for text in (f'{{"name": {value}}}', f'{{"name": "{value}"}}', f'{{"{value}": 1}}', f"[{value}]", value):
            headers = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
            assert 400 <= status(api, settings, f"POST {path}", headers, text.encode()) < 500, (path, text[:50])
