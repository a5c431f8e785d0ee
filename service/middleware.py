"""What every answer gets: a request id, security headers, a measured time, and a problem document if all else fails."""

import asyncio
import contextlib
import re
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, rates
from service.errors import BadRequest, SecateurError
from service.hosts import Hosts
from service.ids import new_id
from service.observe import Telemetry
from service.problems import internal_error, problem

CLIENT_LEFT = 499
"""Counted, never sent: the client closed the connection before an answer."""

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 5.0


class RequestMiddleware:
    """Outermost layer of the app, plain ASGI so that streams stay streams."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, hosts: Hosts) -> None:
        self.app = app
        self.telemetry = telemetry
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.telemetry)
        with logs.about(request_id=exchange.request_id):
            await self._answer(scope, exchange)

    async def _answer(self, scope: Scope, exchange: "_Exchange") -> None:
        started = time.perf_counter()
        try:
            if refusal := self._refusal(scope, exchange):
                await problem(refusal, exchange.request_id)(scope, exchange.receive, exchange.send)
                return
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or CLIENT_LEFT
        except Exception as error:
            if exchange.status is not None:
                raise  # the answer is half sent: only a broken connection can tell the client
            await internal_error(error, exchange.request_id)(scope, exchange.receive, exchange.send)
        finally:
            status = exchange.status or CLIENT_LEFT  # cancelled: nobody waits for the answer any more
            method, seconds = scope["method"], time.perf_counter() - started
            self.telemetry.observe(method, exchange.route, status, seconds)
            logs.access({"method": method, "route": exchange.route, "status": status, "ms": round(1000 * seconds, 1)})

    def _refusal(self, scope: Scope, exchange: "_Exchange") -> SecateurError | None:
        if exchange.has_nul:  # no database takes one, and no name of ours has one
            return BadRequest("The address holds a NUL character.")
        return self.hosts.refusal(scope["headers"])


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, telemetry: Telemetry) -> None:
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        self.request_id = given.decode() if _GIVEN_ID.fullmatch(given) else new_id("req")
        scope["secateur_request_id"] = self.request_id
        self.has_nul = "\0" in scope["path"] or b"%00" in scope["query_string"]
        self.status: int | None = None
        self._scope, self._receive, self._send, self._telemetry = scope, receive, send, telemetry
        self._body_read = False

    @property
    def route(self) -> str:
        """The template of its path."""
        return getattr(self._scope.get("route"), "path", "unmatched")

    async def receive(self) -> Message:
        """Pass a piece of the body on, noting the last."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_read = True
        if size := len(message.get("body", b"")):
            self._telemetry.received(self.route, size)
        return message

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on, with our headers."""
        if size := len(message.get("body", b"")):
            self._telemetry.sent(self.route, size)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(message)
        elif self._refuses_unread_body(message):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _add_headers(self, message: Any) -> None:
        headers = MutableHeaders(scope=message)
        headers["X-Request-Id"] = self.request_id
        headers.update(self._scope.get(rates.HEADERS, {}))
        for name, value in (
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ):
            headers.setdefault(name, value)

    def _refuses_unread_body(self, message: Message) -> bool:
        return not self._body_read and (self.status or 0) >= 400 and not message.get("more_body", False)

    async def _drain(self) -> None:
        """Read on for a while after refusing a body: a client that is still sending would not see the answer."""
        left = _DRAIN_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._body_read and left > 0:
                    left -= len((await self.receive()).get("body", b""))
