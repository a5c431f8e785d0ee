"""A job's events as they happen, as server-sent events that go on where a reader lost them."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from service import jobs
from service.db import Database
from service.deps import DatabaseDep, Reader
from service.problems import responses
from service.routes.job_records import event_view
from service.routes.jobs import owned_job
from service.schemas import EventView
from service.tables import Event

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

COMMENT_SECONDS = 15.0
"""A silence longer than that makes proxies close the connection."""
POLL_SECONDS = 0.5
BATCH = 200
RETRY_MILLISECONDS = 1000


@router.get(
    "/{job_id}/events/stream",
    summary="Follow a job's events",
    response_class=Response,
    responses={
        **responses(404),
        200: {"content": {"text/event-stream": {}}, "description": "one event after another, until the job has ended"},
        204: {"description": "the job has ended and all of its events are known"},
    },
)
async def stream_events(
    principal: Reader,
    job_id: str,
    request: Request,
    database: DatabaseDep,
    last_event_id: Annotated[str | None, Header(description="id of the last event already known")] = None,
    after: Annotated[str | None, Query(description="the same, for clients that cannot set the header")] = None,
) -> Response:
    """Server-sent events from the table: `id` is the event's, `event` its type, `data` what the list of events shows.

    An `EventSource` that lost its connection, or the service, comes back by itself with `Last-Event-ID` and misses
    none. Ends when the job has; a reader that then comes back is told by 204 to stay away.
    """
    known = last_event_id or after or ""
    first, ended = await run_in_threadpool(_read, database, principal.tenant, job_id, known)
    if ended and not first:
        return Response(status_code=204)
    follow = _Follower(request, database, principal.tenant, job_id, known)
    stream = follow.told(first, ended)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def _read(database: Database, tenant: str, job_id: str, after: str) -> tuple[list[EventView], bool]:
    """The next events, and whether there will be no more behind them. Raises `NotFound`."""
    with database.session_scope(read_only=True) as session:
        # The status first: an event that comes with the end is then among those read after it.
        ended = jobs.is_final(owned_job(session, tenant, job_id).status)
        query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(BATCH)
        found = [event_view(row) for row in session.scalars(query)]
        return found, ended and len(found) < BATCH


@dataclass
class _Follower:
    """One reader and the last event that it knows."""

    request: Request
    database: Database
    tenant: str
    job_id: str
    known: str

    async def told(self, events: list[EventView], ended: bool) -> AsyncIterator[bytes]:
        """These events and all that follow, in the format of server-sent events."""
        yield format_sse_event(retry=RETRY_MILLISECONDS)
        spoke = time.monotonic()
        while True:
            for event in events:
                yield format_sse_event(id=event.id, event=event.type, data_str=event.model_dump_json())
                spoke, self.known = time.monotonic(), event.id
            if ended or await self.request.is_disconnected():
                return
            if time.monotonic() - spoke >= COMMENT_SECONDS:
                yield KEEPALIVE_COMMENT
                spoke = time.monotonic()
            await anyio.sleep(POLL_SECONDS)
            events, ended = await run_in_threadpool(_read, self.database, self.tenant, self.job_id, self.known)
