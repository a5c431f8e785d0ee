import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from service.errors import BadRequest, Invalid, PayloadTooLarge
from service.intake import body
from service.intake.body import Pipe, check_digest, receive, wanted_digest
from service.intake.limits import Limits
from service.intake.sources import drain, pieces


def _request(messages: list[dict[str, Any]], read: list[int] | None = None) -> Request:
    left = iter(messages)
    counts = read if read is not None else []

    async def get() -> dict[str, Any]:
        message = next(left, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        counts.append(len(message.get("body", b"")))
        return message

    return Request({"type": "http", "method": "POST", "headers": []}, get)


def _body(*sent: bytes) -> list[dict[str, Any]]:
    return [*({"type": "http.request", "body": piece, "more_body": True} for piece in sent), {"type": "http.request"}]


def _receive(messages: list[dict[str, Any]], consume: Callable[[Pipe], Any], total: int = 1 << 30) -> Any:
    return asyncio.run(receive(_request(messages), Limits("model", total, Path("/"), 0), consume))


def test_the_thread_reads_what_was_sent() -> None:
    sent = [bytes([number]) * 300_000 for number in range(20)]

    def consume(pipe: Pipe) -> tuple[bytes, int, bool]:
        return b"".join(pieces(pipe)), pipe.count, threading.current_thread() is threading.main_thread()

    assert _receive(_body(*sent), consume) == (b"".join(sent), 6_000_000, False)


def test_an_unread_body_waits_at_the_client() -> None:
    """The queue is short: a reader that stands still stops the client, so memory stays flat."""
    read: list[int] = []
    request = _request(_body(*[bytes(1 << 20)] * 100), read)
    go_on = threading.Event()

    def consume(pipe: Pipe) -> int:
        go_on.wait(10)
        return sum(len(piece) for piece in pieces(pipe))

    async def run() -> int:
        work = asyncio.ensure_future(receive(request, Limits("model", 1 << 30, Path("/"), 0), consume))
        for _ in range(200):
            await asyncio.sleep(0)
        assert sum(read) <= 6 << 20
        go_on.set()
        return await work

    assert asyncio.run(run()) == 100 << 20


def test_a_refusal_ends_the_reading() -> None:
    def consume(pipe: Pipe) -> None:
        pipe.read(1)
        raise Invalid("no")

    with pytest.raises(Invalid):
        _receive(_body(*[bytes(1 << 20)] * 50), consume)


@pytest.mark.parametrize("ending", [{"type": "http.disconnect"}, None])
def test_a_body_that_breaks_off_raises_in_the_thread(ending: dict[str, Any] | None) -> None:
    raised: list[BaseException] = []
    done = threading.Event()

    def consume(pipe: Pipe) -> None:
        try:
            for _ in pieces(pipe):
                pass
        except BadRequest as error:
            raised.append(error)
            with pytest.raises(BadRequest):
                pipe.read(1)
            raise
        finally:
            done.set()

    async def run() -> None:
        messages = [{"type": "http.request", "body": b"x", "more_body": True}, *([ending] if ending else [])]
        work = asyncio.ensure_future(receive(_request(messages), Limits("model", 1 << 30, Path("/"), 0), consume))
        if ending is None:
            await asyncio.sleep(0.05)
            work.cancel()
        await work

    with pytest.raises(BadRequest if ending else asyncio.CancelledError):
        asyncio.run(run())
    assert done.wait(10)
    assert [error.code for error in raised if isinstance(error, BadRequest)] == ["BODY_INCOMPLETE"]


def test_the_limit_holds_without_a_content_length() -> None:
    def consume(pipe: Pipe) -> None:
        for _ in pieces(pipe):
            pass

    with pytest.raises(PayloadTooLarge):
        _receive(_body(*[bytes(1 << 20)] * 5), consume, total=3 << 20)


def test_digests() -> None:
    empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    wanted = wanted_digest(f"md5=:AAAA:, {empty}")

    def check(pipe: Pipe) -> None:
        drain(pipe)
        check_digest(pipe, wanted)

    _receive(_body(), check)
    with pytest.raises(Invalid):
        _receive(_body(b"x"), check)
    assert wanted_digest(None) is wanted_digest("md5=:AAAA:") is None
    for malformed in ("sha-256=abc", "sha-256=:!:", "sha-256=:AAAA:"):
        with pytest.raises(BadRequest):
            wanted_digest(malformed)


def test_a_client_that_falls_silent_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "IDLE_SECONDS", 0.05)
    with pytest.raises(body.BodyIncomplete):
        _receive(_body(b"x")[:1], lambda pipe: b"".join(pieces(pipe)))
