"""A receiver of webhooks on the loopback that behaves as it is told, and a listener that nobody should ever call."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook

CERTIFICATE = Path(__file__).with_name("hooks.example.pem")
"""Key and certificate of `hooks.example`; it signs nothing but these tests' handshakes."""

Behaviour = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Received:
    """One request that reached the receiver, and the status that it was answered with."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None

    @property
    def event_id(self) -> str:
        """The `webhook-id`."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """The payload, if the signature is good; raises what receivers' own library raises."""
        payload: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return payload


@dataclass
class Receiver:
    """Answers each request with the next of `plan`, and with 204 when the plan is over."""

    port: int
    requests: list[Received] = field(default_factory=list)
    plan: list[Behaviour] = field(default_factory=list)
    always: Behaviour | None = None

    @property
    def url(self) -> str:
        """Where it listens, by a name that only the tests' resolver knows."""
        return f"http://hooks.example:{self.port}/in?key=1"

    def taken(self) -> list[Received]:
        """Requests that were answered with 2xx."""
        return [one for one in self.requests if one.status is not None and 200 <= one.status < 300]

    def wait(self, count: int, seconds: float = 10.0) -> list[Received]:
        """The requests that were taken, once there are so many; fails when they do not come."""
        wait_for(lambda: len(self.taken()) >= count, seconds)
        return self.taken()


def wait_for(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)


@contextmanager
def receiver(*, tls: bool = False) -> Iterator[Receiver]:
    """A receiver that listens while the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.block_on_close = True, False
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    receiver: Receiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Note the request, then behave."""
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        noted = Received(self.path, headers, body)
        plan = self.server.receiver.plan
        behave = plan.pop(0) if plan else self.server.receiver.always or status(204)
        self.server.receiver.requests.append(noted)
        self.noted = noted
        behave(self)

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Note what is answered."""
        self.noted.status = code
        super().send_response_only(code, message)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def status(code: int, **headers: str) -> Behaviour:
    """An orderly answer."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave


def hang(seconds: float) -> Behaviour:
    """Takes the request and says nothing."""
    return lambda handler: time.sleep(seconds)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Sends its head a byte at a time, each in time for a reader that waits for single bytes."""
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Breaks the connection off."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def endless_headers(handler: BaseHTTPRequestHandler) -> None:
    """A head that never ends."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"X-Filler: " + b"y" * 4096 + b"\r\n")


def endless_body(code: int, sent: list[int]) -> Behaviour:
    """A body that never ends; what could be sent of it is counted."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                sent.append(handler.connection.send(b"z" * 65536))

    return behave


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    """No HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
    handler.close_connection = True


@contextmanager
def forbidden_listener() -> Iterator[tuple[int, list[Any]]]:
    """A port on the loopback, and who connected to it."""
    callers: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, address = listening.accept()
                    callers.append(address)
                    connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1], callers
        finally:
            over.set()
            thread.join()


def body_of(received: Received) -> Any:
    """The payload, unverified."""
    return json.loads(received.body)
