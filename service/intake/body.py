"""A request's body on its way from the event loop to a thread that reads it like a file.

The loop never touches the disk and never waits for it: it fills a short queue, and stops reading from the client while
the queue is full. So memory stays flat and other requests are answered meanwhile.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import queue
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import BadRequest, Invalid, SecateurError
from service.intake.limits import Limits
from service.intake.sources import PIECE

T = TypeVar("T")

IDLE_SECONDS = 60.0
"""A client that sends nothing for so long has gone, though its connection may not know."""

_QUEUED_PIECES = 4
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{1,100}):")


class BodyIncomplete(BadRequest):
    """The body broke off before its end."""

    code = "BODY_INCOMPLETE"


class Pipe:
    """The body, a piece at a time; `read` belongs to the thread, `put` and `end` to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, *, hashed: bool) -> None:
        self._loop = loop
        self._limits = limits
        self._room = asyncio.Semaphore(_QUEUED_PIECES)
        self._pieces: queue.SimpleQueue[bytes | SecateurError] = queue.SimpleQueue()
        self._piece, self._at, self._ended = b"", 0, False
        self._error: SecateurError | None = None
        self._digest = hashlib.sha256() if hashed else None
        self.count = 0

    async def put(self, piece: bytes) -> None:
        """Queue a piece, as soon as there is room."""
        await self._room.acquire()
        self._pieces.put(piece)

    def end(self, error: SecateurError | None = None) -> None:
        """The body has ended, or broken off with `error`."""
        self._pieces.put(error or b"")

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes of the body. Raises `BadRequest` when it broke off, or the limit's refusal."""
        if self._error is not None:
            raise self._error
        if self._at == len(self._piece) and not self._ended:
            self._next()
        taken = self._piece[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def _next(self) -> None:
        piece = self._pieces.get()
        if isinstance(piece, SecateurError):
            self._error = piece
            raise piece
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits for room any more
            self._loop.call_soon_threadsafe(self._room.release)
        self._piece, self._at, self._ended = piece, 0, not piece
        if self._digest is not None:
            self._digest.update(piece)
        self.count += len(piece)
        if self.count > self._limits.total:
            self._error = self._limits.refusal()
            raise self._error

    def sha256(self) -> str:
        """Hex digest of what was read so far: of the body, once it was read to its end. Only of one that is hashed."""
        assert self._digest is not None
        return self._digest.hexdigest()


async def receive(request: Request, limits: Limits, consume: Callable[[Pipe], T], *, hashed: bool = True) -> T:
    """Run `consume` in a thread of its own while the body flows to it, `hashed` or not; returns its result.

    When the client goes or the request is cancelled, the thread's next `read` raises, so that it can clean up.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.total:
        raise limits.refusal()
    loop = asyncio.get_running_loop()
    pipe = Pipe(loop, limits, hashed=hashed)
    executor = ThreadPoolExecutor(1, thread_name_prefix="upload")
    work = loop.run_in_executor(executor, consume, pipe)
    feeding = asyncio.ensure_future(_feed(request, pipe))
    try:
        both: set[asyncio.Future[Any]] = {work, feeding}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        return await asyncio.shield(work)
    finally:
        feeding.cancel()
        pipe.end(_broken_off())
        executor.shutdown(wait=False)


async def _feed(request: Request, pipe: Pipe) -> None:
    gathered = bytearray()
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                break
            gathered += piece
            if len(gathered) >= PIECE:
                await pipe.put(bytes(gathered))
                gathered.clear()
    except (ClientDisconnect, TimeoutError):
        pipe.end(_broken_off())
        return
    if gathered:
        await pipe.put(bytes(gathered))
    pipe.end()


def _broken_off() -> BodyIncomplete:
    return BodyIncomplete("The body broke off before its end, or nothing came of it for a minute.")


def wanted_digest(header: str | None) -> bytes | None:
    """The SHA-256 that a Repr-Digest header (RFC 9530) promises; None without one.

    Raises `BadRequest` when the header is malformed; other algorithms are ignored, as the RFC says.
    """
    if header is None or "sha-256" not in header:
        return None
    match = _DIGEST.search(header)
    with contextlib.suppress(binascii.Error):
        if match and len(digest := base64.b64decode(match[1], validate=True)) == hashlib.sha256().digest_size:
            return digest
    raise BadRequest("Write Repr-Digest as sha-256=:<base64 of 32 bytes>:", code="DIGEST_MALFORMED")


def check_digest(pipe: Pipe, wanted: bytes | None) -> None:
    """Raises `Invalid` when the body is not what its Repr-Digest promised."""
    if wanted is not None and not hmac.compare_digest(bytes.fromhex(pipe.sha256()), wanted):
        raise Invalid("The body's SHA-256 is not the one in Repr-Digest; send it again.", code="DIGEST_MISMATCH")
