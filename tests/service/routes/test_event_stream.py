"""Following a job's events: all of them, in order, over a lost connection and a killed API."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from starlette.testclient import TestClient

from service import events, jobs
from service.db import Database
from service.ids import following, new_id
from service.routes import event_stream
from service.tables import Event, Job
from tests.databases import on_databases
from tests.live import LiveService, kill_tree
from tests.service.samples import submitted

MANY = 450
"""More than two readings of the table give at once."""


def parsed(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Events of a stream, each as its fields."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line and "id" in fields:
            yield fields
        fields = {**fields, name: value} if line else {}


def tell(database: Database, job_id: str, first: int, count: int) -> None:
    with database.session_scope() as session:
        for number in range(first, first + count):
            events.emit(session, job_id, "pruning.cut", f"Cut {number}.", data={"number": number})


def ended(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        jobs.cancel(session, session.get_one(Job, job_id))


@on_databases
def test_all_events_of_a_job_that_has_ended_and_no_more_after_them(client: TestClient, database: Database) -> None:
    job = submitted(database)
    tell(database, job.id, 0, MANY)
    ended(database, job.id)
    url = f"/v1/jobs/{job.id}/events/stream"
    with client.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = list(parsed(answer.iter_lines()))
    assert [event["event"] for event in found] == ["job.queued", *["pruning.cut"] * MANY, "job.cancelled"]
    shown = json.loads(found[1]["data"])
    assert (shown["id"], shown["data"]) == (found[1]["id"], {"number": 0})
    with client.stream("GET", url, headers={"Last-Event-ID": found[-3]["id"]}) as answer:
        assert [event["id"] for event in parsed(answer.iter_lines())] == [event["id"] for event in found[-2:]]
    assert client.get(url, headers={"Last-Event-ID": found[-1]["id"]}).status_code == 204
    assert client.get(url, params={"after": found[-1]["id"]}).status_code == 204


def test_a_foreign_job_is_as_unknown_as_any(client: TestClient, database: Database) -> None:
    foreign = submitted(database, tenant="other").id
    for job_id in (foreign, new_id("job")):
        answer = client.get(f"/v1/jobs/{job_id}/events/stream")
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_silent_stream_is_kept_open(client: TestClient, database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(event_stream, "COMMENT_SECONDS", 0.0)
    job = submitted(database)
    closing = threading.Timer(1.5, ended, (database, job.id))
    closing.start()
    with client.stream("GET", f"/v1/jobs/{job.id}/events/stream") as answer:
        lines = list(answer.iter_lines())
    closing.join()
    assert ": ping" in lines and "event: job.cancelled" in lines


@on_databases
def test_an_event_goes_behind_all_others_whatever_the_clock_says(client: TestClient, database: Database) -> None:
    job = submitted(database)
    ahead = "evt_7" + "Z" * 24 + "Y"
    with database.session_scope() as session:
        session.add(Event(id=ahead, job_id=job.id, level="info", type="pruning.cut", message="Early.", data={}))
    tell(database, job.id, 0, 1)
    listed = client.get(f"/v1/jobs/{job.id}/events", params={"after": ahead}).json()["data"]
    assert [event["id"] for event in listed] == [following(ahead)] == ["evt_7" + "Z" * 25]


def test_a_reader_that_loses_the_api_twice_misses_nothing(live_service: LiveService, database: Database) -> None:
    assert live_service.worker is not None
    kill_tree(live_service.worker)  # so that nothing happens to the job but what is told here
    live_service.worker = None
    job = submitted(database).id
    seen: list[dict[str, str]] = []
    reading = threading.Thread(target=_follow, args=(live_service, job, seen))
    reading.start()
    for number in range(3):
        tell(database, job, 10 * number, 10)
        live_service.wait_for(lambda wanted=10 * number: len(seen) > wanted, "the first of ten events")
        if number < 2:
            assert live_service.api is not None
            kill_tree(live_service.api)
            tell(database, job, 100 + number, 1)
            live_service.start_api()
    ended(database, job)
    reading.join(60)
    told = [json.loads(event["data"])["data"].get("number") for event in seen if event["event"] == "pruning.cut"]
    assert told == [*range(10), 100, *range(10, 20), 101, *range(20, 30)]
    assert len({event["id"] for event in seen}) == len(seen)


def _follow(service: LiveService, job: str, seen: list[dict[str, str]]) -> None:
    """Reads like an EventSource: comes back with the last id until it is told that there is no more."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    while True:
        try:
            with httpx.stream("GET", f"{service.url}/v1/jobs/{job}/events/stream", headers=headers) as answer:
                if answer.status_code == 204:
                    return
                for event in parsed(answer.iter_lines()):
                    seen.append(event)
                    headers["Last-Event-ID"] = event["id"]
        except httpx.TransportError:
            time.sleep(0.1)
