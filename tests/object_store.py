"""A real object store for the tests, moto's server in a process of its own, and a proxy that spoils what it carries."""

import http.client
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from service.processes import start, stop
from tests.servers import free_port

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTSECATEUR",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-line-may-show",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What a process is told so that it may use the store, and looks nowhere else."""

START_SECONDS = 30.0


@dataclass
class S3Server:
    """One object store at an address of the loopback."""

    url: str

    def bucket(self, prefix: str = "below") -> str:
        """Storage URL of an empty bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        httpx.put(f"{self.url}/{name}", trust_env=False).raise_for_status()
        return f"s3://{name}/{prefix}?endpoint={self.url}&region=us-east-1"

    def inside(self, storage_url: str) -> str:
        """What the store tells of the objects and the unfinished uploads of a storage's bucket, as XML."""
        bucket = storage_url.removeprefix("s3://").partition("/")[0]
        asked = (f"{self.url}/{bucket}?{what}" for what in ("list-type=2", "uploads"))
        return "".join(httpx.get(url, trust_env=False).text for url in asked)


@contextmanager
def object_store() -> Iterator[S3Server]:
    """A running store for the length of the block."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="secateur-test-s3-") as folder:
        file = Path(folder) / "log"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with file.open("wb") as log:
            process = start(command, cwd=Path(folder), env={"PATH": os.defpath} | ENVIRONMENT, stdout=log, stderr=log)
        try:
            server = S3Server(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + START_SECONDS
            while not _answers(server.url):
                assert process.poll() is None and time.monotonic() < deadline, file.read_text()
                time.sleep(0.05)
            yield server
        finally:
            stop(process, grace=2)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


Spoil = Callable[[str, str, int], str | None]


@dataclass
class FaultyProxy:
    """Passes requests on to a store; `spoil(method, path, nth)` may name a fault for the nth of all requests.

    Faults: `refuse` (403 with a code), `busy` (503), `cut` (half of the answer's body, then the connection closes),
    `drop` (no answer at all), `deny` (a checksum that did not match).
    """

    behind: S3Server
    spoil: Spoil = lambda method, path, nth: None
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _any(self) -> None:
                proxy.carry(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()

    def address(self, storage_url: str) -> str:
        """The same storage, by way of this proxy."""
        return storage_url.replace(self.behind.url, self.url)

    def carry(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.seen.append((handler.command, handler.path, dict(handler.headers.items()), body))
        fault = self.spoil(handler.command, handler.path, len(self.seen))
        if fault == "drop":
            handler.close_connection = True
        elif fault in _ANSWERS:
            status, code = _ANSWERS[fault]
            self._answer(handler, status, {}, f"<Error><Code>{code}</Code><Message>words</Message></Error>".encode())
        else:
            status, headers, content = self._ask(handler, body)
            self._answer(handler, status, headers, content, cut=fault == "cut")

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.behind.url.removeprefix("http://"), timeout=20)
        connection.request(handler.command, handler.path, body, dict(handler.headers.items()))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP}
        return response.status, kept, content

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        cut: bool = False,
    ) -> None:
        handler.send_response(status)
        told = {"Content-Length": str(len(content))} | headers
        for name, value in told.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if cut else content)
        handler.close_connection = cut


_ANSWERS = {"refuse": (403, "AccessDenied"), "busy": (503, "SlowDown"), "deny": (400, "BadDigest")}
_HOP = frozenset({"connection", "transfer-encoding", "server", "date"})
