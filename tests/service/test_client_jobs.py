"""The client's side of a job's life, on both clients."""

import json
from typing import Any

import httpx
import pytest

from service.errors import Conflict
from tests.service.test_client import Invoke, async_invoke, sync_invoke


@pytest.fixture(params=[sync_invoke, async_invoke], ids=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Invoke:
    """Calls a method of one of the clients."""
    call: Invoke = request.param
    return call


@pytest.mark.parametrize(
    ("method", "arguments", "path", "body"),
    [
        ("pause_job", {}, "pause", None),
        ("resume_job", {}, "resume", None),
        ("retry_job", {}, "retry", {"from": "checkpoint"}),
        ("retry_job", {"start": "start"}, "retry", {"from": "start"}),
        ("clone_job", {"changes": {"seed": 1}}, "clone", {"seed": 1}),
        ("clone_job", {}, "clone", {}),
    ],
)
def test_each_asks_its_route(invoke: Invoke, method: str, arguments: Any, path: str, body: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", f"/v1/jobs/job_1/{path}")
        assert (json.loads(request.content) if request.content else None) == body
        assert ("idempotency-key" in request.headers) == (path == "clone")
        return httpx.Response(200, json={"id": "job_1", "status": "queued"})

    assert invoke(handler, method, "job_1", **arguments)["status"] == "queued"


def test_watching_tells_of_a_pause_and_goes_on(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["running", "pausing", "paused", "queued", "running", "succeeded"])
    told: list[str] = []

    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "job_1", "status": next(states)})

    job = invoke(handler, "watch_job", "job_1", lambda seen: told.append(seen["status"]))
    assert job["status"] == "succeeded"
    assert told == ["running", "pausing", "paused", "queued", "running", "succeeded"]


def test_a_repetition_that_came_too_soon_is_sent_again(invoke: Invoke) -> None:
    busy = httpx.Response(409, json={"code": "IDEMPOTENCY_IN_FLIGHT", "detail": "still running"})
    answers = iter([busy, httpx.Response(202, json={"id": "job_1"})])
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return next(answers)

    assert invoke(handler, "submit_job", {}) == {"id": "job_1"}
    assert len(keys) == 2 and len(set(keys)) == 1


def test_another_conflict_is_not_sent_again(invoke: Invoke) -> None:
    sent: list[int] = []

    def handler(_: httpx.Request) -> httpx.Response:
        sent.append(1)
        return httpx.Response(
            409, json={"code": "JOB_NOT_PAUSED", "detail": "The job is running.", "job_status": "running"}
        )

    with pytest.raises(Conflict) as refused:
        invoke(handler, "resume_job", "job_1")
    assert (refused.value.code, len(sent)) == ("JOB_NOT_PAUSED", 1)
