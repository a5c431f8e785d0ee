"""A deploy stops processes in order while clients go on: no request is lost, and jobs go on elsewhere."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
from sqlalchemy import func, select

from service.tables import Job
from tests.faults.conftest import Site
from tests.faults.recovery import Recovery
from tests.processes import wait_for

CLIENTS = 4
NAME = "deployed"


class Client(threading.Thread):
    """Submits, cancels and reads over one connection that is kept alive.

    What is tried again is what HTTP allows for idempotent requests: a connection that was refused, or that the server
    closed before it answered.
    """

    def __init__(self, site: Site, over: threading.Event) -> None:
        super().__init__()
        self._site, self._over = site, over
        self._http = httpx.Client(base_url=site.live.url, headers=site.live.client.headers, timeout=30, trust_env=False)
        self.taken: list[str] = []
        self.failed: list[str] = []
        self.again = 0

    def run(self) -> None:
        """Ask until it is over."""
        spec = self._site.spec(name=NAME, metadata={"behaviour": "succeed"})
        with self._http:
            while not self._over.is_set():
                job_id = self._ask("POST", "/v1/jobs", json=spec, headers={"Idempotency-Key": uuid4().hex})["id"]
                self.taken.append(job_id)
                self._ask("POST", f"/v1/jobs/{job_id}/cancel")
                self._ask("GET", f"/v1/jobs/{job_id}")

    def _ask(self, method: str, path: str, **parts: Any) -> Any:
        while True:
            try:
                answer = self._http.request(method, path, **parts)
            except httpx.TransportError:
                self.again += 1
                time.sleep(0.05)
                continue
            told = answer.json()
            if not answer.is_success and told["code"] != "JOB_FINISHED":  # a cancel may come too late
                self.failed.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return told


@contextmanager
def load(site: Site) -> Iterator[list[Client]]:
    """Clients at work for the length of the block."""
    over = threading.Event()
    clients = [Client(site, over) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        over.set()
        for client in clients:
            client.join()


def test_an_api_that_is_told_to_stop_answers_what_it_has_taken(scripted: Site, recovery: Recovery) -> None:
    site = scripted
    with load(site) as clients:
        wait_for(lambda: all(len(client.taken) > 5 for client in clients))
        assert site.live.api is not None
        site.live.api.terminate()
        with recovery.within(30, "API told to stop under load: it has answered and left"):
            assert site.live.api.wait(60) in (0, -signal.SIGTERM)
        before = [len(client.taken) for client in clients]
        site.live.start_api()
        wait_for(lambda: all(len(client.taken) > old + 5 for client, old in zip(clients, before, strict=True)))
    assert [client.failed for client in clients] == [[]] * CLIENTS
    taken = [job_id for client in clients for job_id in client.taken]
    with site.live.database.session_scope(read_only=True) as session:
        kept = session.scalar(select(func.count()).select_from(Job).where(Job.id.in_(taken)))
        same = session.scalar(select(func.count()).select_from(Job).where(Job.name == NAME))
    assert len(set(taken)) == len(taken) == kept == same
    print(f"{len(taken)} jobs, {sum(client.again for client in clients)} requests made again")


def test_a_worker_that_is_told_to_stop_hands_its_job_on(scripted: Site, recovery: Recovery) -> None:
    other, live = scripted.live.add_worker(), scripted.live
    assert live.worker is not None
    job_id = scripted.script("train", steps="200")
    wait_for(lambda: scripted.saved(job_id) > 0)
    (attempt,) = scripted.job(job_id)["attempts"]
    if attempt["worker"].endswith(f":{other.pid}"):
        live.worker, live.others = other, [live.worker]
    leaving, live.worker = live.worker, live.others.pop()
    leaving.terminate()
    with recovery.within(10, "worker told to stop: its job goes on elsewhere"):
        wait_for(lambda: len(scripted.job(job_id)["attempts"]) == 2, seconds=60)
        wait_for(lambda: scripted.job(job_id)["progress"]["step"] > 0, seconds=60)
    assert leaving.wait(timeout=20) == 0
    scripted.assert_one_result(job_id, ["returned", "succeeded"])
    first, second = (int(step) for step in scripted.started(job_id).read_text().split())
    assert first == 0 and second > 0
