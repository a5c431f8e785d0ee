"""Receivers of webhooks that are down, slow or malicious: jobs never wait for them, and the API bears them."""

from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.faults.conftest import Site
from tests.faults.test_outages import order
from tests.live import LiveService
from tests.service.webhooks import receiver as hostile
from tests.service.webhooks.receiver import Receiver, receiver

JOBS = 3
MOST_MORE_MEMORY = 96 << 20


@pytest.fixture
def private(site: Site) -> Iterator[Site]:
    """A site whose API sends webhooks to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveService, "environment", site.live.environment | {"SECATEUR_WEBHOOK_ALLOW_PRIVATE": "true"})
        restart_api(site)
    yield site
    for endpoint in site.live.client.get("/v1/webhook_endpoints").json()["data"]:
        site.live.client.delete(f"/v1/webhook_endpoints/{endpoint['id']}")
    restart_api(site)


def restart_api(site: Site) -> None:
    """Another process, with what the environment says now."""
    assert site.live.api is not None
    site.live.api.kill()
    site.live.api.wait()
    site.live.start_api()


def test_jobs_run_through_while_every_receiver_misbehaves(private: Site) -> None:
    live = private.live
    with ExitStack() as running:
        port, callers = running.enter_context(hostile.forbidden_listener())
        sent: list[int] = []
        behaviours = {
            "hangs": hostile.hang(120),
            "drips": hostile.drip,
            "endless": hostile.endless_body(200, sent),
            "redirects": hostile.status(302, Location=f"http://127.0.0.1:{port}/"),
        }
        endpoints = {}
        for name, behaviour in behaviours.items():
            listening = running.enter_context(receiver())
            listening.always = behaviour
            endpoints[name] = (listening, endpoint(live, listening))
        assert live.api is not None
        api = psutil.Process(live.api.pid)
        before = api.memory_info().rss
        ordered = [order(private) for _ in range(JOBS)]
        for job_id in ordered:
            private.assert_one_result(job_id, ["succeeded"])
        waiting = deliveries(live, endpoints["hangs"][1])
        assert [row["status"] for row in waiting] == ["pending"] * 2 * JOBS, "all jobs ended before one was answered"
        live.wait_for(lambda: all(listening.requests for listening, _ in endpoints.values()), "every receiver's turn")
        live.wait_for(lambda: statuses(live, endpoints["endless"][1]) == {"succeeded"}, "what was answered to count")
        live.wait_for(lambda: "redirected" in errors(live, endpoints["redirects"][1]), "the redirect to be told")
        assert callers == [], "no redirect is followed"
        assert api.memory_info().rss - before < MOST_MORE_MEMORY
        assert live.client.get("/v1/jobs").status_code == 200


def endpoint(live: LiveService, listening: Receiver) -> str:
    """An endpoint for a receiver; its id."""
    body = {"url": f"http://127.0.0.1:{listening.port}/", "events": ["job.started", "job.succeeded"]}
    answer = live.client.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def deliveries(live: LiveService, endpoint_id: str) -> list[dict[str, object]]:
    """The log of an endpoint."""
    rows: list[dict[str, object]] = live.client.get(f"/v1/webhook_endpoints/{endpoint_id}/deliveries").json()["data"]
    return rows


def statuses(live: LiveService, endpoint_id: str) -> set[object]:
    """Those of all its deliveries."""
    return {row["status"] for row in deliveries(live, endpoint_id)}


def errors(live: LiveService, endpoint_id: str) -> set[object]:
    """Of what kind the failures of its attempts were."""
    return {attempt["error"] for row in deliveries(live, endpoint_id) for attempt in row["attempts"]}  # type: ignore[attr-defined]
