"""What every answer carries, whatever happened inside."""

import logging
from collections.abc import AsyncIterator

import anyio
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Message

from service.hosts import Hosts
from service.middleware import RequestMiddleware
from service.observe import Telemetry

SECRET = "canary-secret"


def _app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestMiddleware, telemetry=Telemetry(), hosts=Hosts())

    @app.get("/fine")
    def fine() -> dict[str, bool]:
        return {"fine": True}

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET)

    @app.post("/refuses", status_code=413)
    async def refuses(request: Request) -> None:
        return None

    @app.get("/torn")
    def torn() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError(SECRET)

        return StreamingResponse(pieces())

    return app


def test_every_answer_has_an_id_and_safe_headers() -> None:
    with TestClient(_app()) as client:
        for path in ("/fine", "/broken", "/nowhere"):
            headers = client.get(path).headers
            assert headers["x-request-id"].startswith("req_")
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"


def test_a_clients_id_is_kept_where_it_is_harmless() -> None:
    with TestClient(_app()) as client:
        assert client.get("/fine", headers={"X-Request-Id": "trace-1.a"}).headers["x-request-id"] == "trace-1.a"
        for bad in ("a b", "x" * 65, '"<script>'):
            assert client.get("/fine", headers={"X-Request-Id": bad}).headers["x-request-id"].startswith("req_")


def test_an_unhandled_error_says_nothing_but_its_id(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(_app()) as client, caplog.at_level(logging.ERROR):
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "INTERNAL_ERROR"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert SECRET not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_an_error_in_the_middle_of_an_answer_breaks_the_connection() -> None:
    with TestClient(_app()) as client, pytest.raises(RuntimeError):
        client.get("/torn")


@pytest.mark.parametrize("path", ["/fine?a=%00", "/fine%00"])
def test_nul_characters_are_refused(path: str) -> None:
    with TestClient(_app()) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST")


def test_a_refused_body_is_read_before_the_answer_ends() -> None:
    """A client that is still sending would otherwise see a reset instead of the answer."""
    pieces, log = 20, []

    async def receive() -> Message:
        log.append("read")
        return {"type": "http.request", "body": b"x" * 1000, "more_body": log.count("read") < pieces}

    async def send(message: Message) -> None:
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        log.append("end" if ended else "part")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/refuses",
        "raw_path": b"/refuses",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("test", 80),
        "client": ("test", 1),
    }
    anyio.run(_app(), scope, receive, send)
    assert log == ["part", "part", *["read"] * pieces, "end"]
