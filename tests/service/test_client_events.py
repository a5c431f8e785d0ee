"""Following a job's events with either client: over cut lines, lost connections and a service that is killed."""

import asyncio
import json
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import AsyncClient, Client, Unreachable
from service.config import Settings
from service.db import Database
from service.errors import NotFound
from tests.live import LiveService, kill_tree
from tests.service.routes.test_event_stream import ended, tell
from tests.service.samples import submitted

Handler = Callable[[httpx.Request], httpx.Response]
Follow = Callable[..., list[dict[str, Any]]]


def follow_sync(handler: Handler, **options: Any) -> list[dict[str, Any]]:
    """All events, with `Client`."""
    with Client("http://service", "sct_key", transport=httpx.MockTransport(handler)) as client:
        return list(client.stream_job_events("job_1", **options))


def follow_async(handler: Handler, **options: Any) -> list[dict[str, Any]]:
    """All events, with `AsyncClient`."""

    async def go() -> list[dict[str, Any]]:
        async with AsyncClient("http://service", "sct_key", transport=httpx.MockTransport(handler)) as client:
            return [event async for event in client.stream_job_events("job_1", **options)]

    return asyncio.run(go())


@pytest.fixture(params=[follow_sync, follow_async], ids=["sync", "async"])
def follow(request: pytest.FixtureRequest) -> Follow:
    """Both clients, one after the other."""
    return typing.cast(Follow, request.param)


def told(*numbers: int, ending: str = "\n") -> bytes:
    """Server-sent events with these numbers."""
    events = ({"id": f"evt_{number}", "message": f"Cut {number}: ü"} for number in numbers)
    lines = (
        f"id: {event['id']}{ending}event: cut{ending}data: {json.dumps(event)}{ending}{ending}" for event in events
    )
    return "".join(lines).encode()


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of given pieces, after which the connection may break."""

    def __init__(self, *pieces: bytes, breaks: bool = False) -> None:
        self._pieces, self._breaks = pieces, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._breaks:
            raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> typing.AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Service:
    """Gives one answer after another, and notes what it was told of the last event."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = iter(answers)
        self.known: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/jobs/job_1/events/stream"
        self.known.append(request.headers.get("last-event-id"))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def stream(*pieces: bytes, breaks: bool = False) -> httpx.Response:
    """An answer with these pieces."""
    return httpx.Response(200, stream=Pieces(*pieces, breaks=breaks))


def done() -> httpx.Response:
    """The job has ended, and all is known."""
    return httpx.Response(204, stream=Pieces())


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_events_are_put_together_from_any_pieces(follow: Follow, pauses: list[float], ending: str) -> None:
    whole = b"retry: 1500\n\n: keep alive\n\n" + told(1, 2, 3, ending=ending)
    service = Service(stream(*(whole[at : at + 1] for at in range(len(whole)))), done())
    found = follow(service)
    assert [event["id"] for event in found] == ["evt_1", "evt_2", "evt_3"]
    assert found[0]["message"] == "Cut 1: ü"
    assert pauses == [1.5], "as long as the service wished"


def test_after_a_break_it_goes_on_behind_the_last_whole_event(follow: Follow, pauses: list[float]) -> None:
    cut = told(3)[:-10]
    away = httpx.Response(503, json={"code": "UNAVAILABLE"})
    service = Service(
        stream(told(1, 2) + cut, breaks=True), httpx.ConnectError("refused"), away, stream(told(3, 4)), done()
    )
    assert [event["id"] for event in follow(service)] == ["evt_1", "evt_2", "evt_3", "evt_4"]
    assert service.known == [None, "evt_2", "evt_2", "evt_2", "evt_4"]
    assert pauses == [0.25, 0.5, 1.0, 1.0]


def test_it_begins_behind_what_is_known(follow: Follow, pauses: list[float]) -> None:
    service = Service(done())
    assert follow(service, after="evt_7") == []
    assert service.known == ["evt_7"]


def test_patience_ends(follow: Follow, pauses: list[float]) -> None:
    service = Service(*(httpx.ConnectError("refused") for _ in range(4)))
    with pytest.raises(Unreachable):
        follow(service, patience=3)
    assert pauses == [0.25, 0.5, 1.0]


def test_a_job_that_is_not_there_is_told_at_once(follow: Follow, pauses: list[float]) -> None:
    with pytest.raises(NotFound):
        follow(Service(httpx.Response(404, json={"code": "NOT_FOUND", "detail": "no such job"})))
    assert pauses == []


def test_a_service_that_is_killed_and_starts_again_costs_no_event(
    settings: Settings, api_key: str, database: Database, tmp_path: Path
) -> None:
    job_id = submitted(database).id
    found: list[dict[str, Any]] = []
    with LiveService(settings, api_key) as service, Client(service.url, api_key) as client:
        service.start_api()
        tell(database, job_id, 0, 3)
        reader = threading.Thread(target=lambda: found.extend(client.stream_job_events(job_id, patience=10)))
        reader.start()
        service.wait_for(lambda: bool(client.job_events(job_id)), "the first events")
        assert service.api is not None
        kill_tree(service.api)
        tell(database, job_id, 3, 3)
        service.start_api()
        tell(database, job_id, 6, 3)
        ended(database, job_id)
        reader.join(60)
        assert found == client.job_events(job_id)
    assert [event["data"].get("number") for event in found[1:-1]] == list(range(9))
