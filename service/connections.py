"""Connections as a scarce good: deadlines for what comes too slowly, and a cap on how many there are.

Uvicorn waits for ever for the end of a request's headers, for the next byte of its body, and for a client that does not
read its answer. Each such connection costs the client nothing, and the service a file descriptor.
"""

import asyncio
import http
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.config import Settings
from service.errors import BadRequest, HeadersTooLarge, RequestTimeout, SecateurError, Unavailable
from service.ids import new_id
from service.problems import problem

SLOWEST_BODY = 1024
"""Bytes per second: a body that comes slower over a whole `body_timeout_seconds` is given up."""

_TOO_LARGE = "The address and headers of a request are too large."
_Phase = Literal["head", "body", "idle"]


@dataclass(frozen=True)
class Limits:
    """What one connection may take: times in seconds, sizes in bytes."""

    head_seconds: float
    body_seconds: float
    answer_seconds: float
    head_bytes: int
    connections: int
    per_address: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The operator's limits."""
        return cls(
            settings.header_timeout_seconds,
            settings.body_timeout_seconds,
            settings.answer_timeout_seconds,
            settings.max_header_bytes,
            settings.max_connections,
            settings.max_connections_per_address,
        )


class Door:
    """Counts the connections of one server. At a cap, whoever has waited longest without a request makes room."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: Counter[str] = Counter()
        self._waiting: dict[GuardedProtocol, None] = {}

    def admit(self, connection: "GuardedProtocol") -> bool:
        """Count a new connection in; False when none could be closed for it, as all have a request under way."""
        address = connection.address
        crowded = self._open[address] >= self.limits.per_address
        if crowded or self._open.total() >= self.limits.connections:
            oldest = next((one for one in self._waiting if not crowded or one.address == address), None)
            if oldest is None:
                return False
            oldest.leave()
        self._open[address] += 1
        return True

    def waits(self, connection: "GuardedProtocol") -> None:
        """It has no request under way from now on."""
        self._waiting[connection] = None

    def works(self, connection: "GuardedProtocol") -> None:
        """The headers of a request are complete."""
        self._waiting.pop(connection, None)

    def release(self, connection: "GuardedProtocol") -> None:
        """It is closed."""
        self._waiting.pop(connection, None)
        self._open[connection.address] -= 1
        if not self._open[connection.address]:
            del self._open[connection.address]


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 of one connection, with deadlines; the server's `door` is set by `guarded`."""

    door: ClassVar[Door]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take the connection, or refuse it with 503."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._phase: _Phase = "idle"
        self._received = 0
        self._held_back = False
        self._admitted = self.door.admit(self)
        if self._admitted:
            self._await_head()
        else:
            self._refuse(Unavailable("The service has too many connections; try again.", headers={"Retry-After": "5"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._set_timer(None)
        self._watch_answer(on=False)
        if self._admitted:
            self._admitted = False
            self.door.release(self)
        super().connection_lost(exc)

    def leave(self) -> None:
        """Make room for another connection, at once."""
        self._admitted = False
        self.door.release(self)
        self.transport.abort()

    # What the client sends

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        if not self._admitted:
            return
        if self._phase == "idle":
            self._await_head()
        self._received += len(data)
        super().data_received(data)
        if self._phase == "head" and self._received > self.door.limits.head_bytes:
            self._refuse(HeadersTooLarge(_TOO_LARGE))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._phase == "idle":
            self._await_head()

    def on_headers_complete(self) -> None:
        """Start the request, and watch its body come."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.door.limits.head_bytes:
            self.app: Any = _last_answer(HeadersTooLarge(_TOO_LARGE))
        super().on_headers_complete()
        self.door.works(self)
        self._phase = "body"
        self._watch_body()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        super().on_body(body)
        self._held_back |= self.flow.read_paused

    def on_message_complete(self) -> None:
        """The request is whole; how long its answer takes is our own affair."""
        super().on_message_complete()
        self._phase = "idle"
        self._set_timer(None)
        self._may_wait()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem document as well."""
        self._refuse(BadRequest("The request is no HTTP that is spoken here.", code="HTTP_MALFORMED"))

    def _await_head(self) -> None:
        self._phase, self._received = "head", 0
        self._set_timer(self.door.limits.head_seconds)
        self._may_wait()

    def _may_wait(self) -> None:
        if self._phase != "body" and self._admitted and (self.cycle is None or self.cycle.response_complete):
            self.door.waits(self)

    def _watch_body(self) -> None:
        self._received, self._held_back = 0, self.flow.read_paused
        self._set_timer(self.door.limits.body_seconds)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._phase == "head":
            self._refuse(RequestTimeout("The headers of a request did not come in time."))
            return
        ours = self._held_back or self.cycle.waiting_for_100_continue  # we did not read, or have not asked for it yet
        if ours or self._received >= SLOWEST_BODY * self.door.limits.body_seconds:
            self._watch_body()
        else:
            self._refuse(RequestTimeout("The body came too slowly."))

    def _refuse(self, error: SecateurError) -> None:
        """Answer, unless an answer is under way, and close."""
        if self.transport.is_closing():
            return
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        pending = self._phase != "body" and self.cycle is not None and not self.cycle.response_complete
        if not begun and not pending:
            self.transport.write(_as_bytes(_last_answer(error)))
        self.transport.close()

    # What the client reads

    def pause_writing(self) -> None:
        """The client reads more slowly than we write: from now on it has some time to take what it was sent."""
        super().pause_writing()
        self._watch_answer(on=True)

    def resume_writing(self) -> None:
        """It has taken most of that."""
        super().resume_writing()
        self._watch_answer(on=False)

    def on_response_complete(self) -> None:
        """The end of the answer is written, if perhaps not read."""
        super().on_response_complete()
        self._may_wait()
        self._watch_answer(on=self.transport.get_write_buffer_size() > 0)

    def _watch_answer(self, *, on: bool) -> None:
        if self._stall is not None:
            self._stall.cancel()
        self._stall = self.loop.call_later(self.door.limits.answer_seconds, self._unread) if on else None

    def _unread(self) -> None:
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()


def guarded(settings: Settings) -> type[GuardedProtocol]:
    """The protocol of one server, for uvicorn's `http`."""
    return type("GuardedProtocol", (GuardedProtocol,), {"door": Door(Limits.of(settings))})


def _last_answer(error: SecateurError) -> Response:
    """What the connection itself answers before it is closed; the app never sees the request."""
    request_id = new_id("req")
    error.headers = {**error.headers, "X-Request-Id": request_id, "Connection": "close"}
    return problem(error, request_id)


def _as_bytes(answer: Response) -> bytes:
    status = f"HTTP/1.1 {answer.status_code} {http.HTTPStatus(answer.status_code).phrase}"
    lines = [status.encode(), *(name + b": " + value for name, value in answer.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])
