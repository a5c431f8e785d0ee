"""The broker, then the database, go and come back: nothing that was acknowledged is lost, nothing is done twice."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis
from sqlalchemy import select

from service.auth import issue_key
from service.broker import Broker
from service.db import Database
from service.storage import open_storage
from service.tables import IdempotencyRecord, Job
from tests.databases import migrate
from tests.faults.conftest import Site, make_settings
from tests.faults.recovery import Recovery
from tests.live import LiveService
from tests.processes import gone, wait_for
from tests.proxy import Proxy
from tests.servers import PostgreSQL, postgresql
from tests.service.samples import a_model, a_spec, store
from workers.consumer import DEAF

JOBS = 3
RESTARTS = 5
EPOCHS = 60
WRITERS = 4


def order(site: Site) -> str:
    """Queue a job that is streamed from file to file in a second."""
    cut = {"structure": "weights", "ratio": 0.5, "pattern": "unstructured", "criterion": {"kind": "magnitude"}}
    spec = {"name": "swift", "task": "text-classification", "pruning": {"cuts": [cut]}, "benchmark": None}
    answer = site.live.client.post("/v1/jobs", json=spec | {"model_id": site.model_id})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def lose(site: Site) -> None:
    """SIGKILL the broker and delete what it had stored."""
    assert site.broker.process is not None
    site.broker.process.kill()
    site.broker.process.wait()
    for file in (site.broker.directory / "appendonlydir").iterdir():
        file.unlink()


def test_jobs_ordered_while_the_broker_is_away_start_soon_after_it_is_back(site: Site, recovery: Recovery) -> None:
    lose(site)
    ordered = []
    for _ in range(JOBS):
        ordered.append(order(site))
        time.sleep(1)  # an outage in which the worker knocks in vain
    assert [site.job(job_id)["status"] for job_id in ordered] == ["queued"] * JOBS
    site.broker.start()
    with recovery.within(30, "broker lost with all it knew: every queued job has been picked up"):
        site.live.wait_for(lambda: all(site.outcomes(job_id) for job_id in ordered), "every job to be picked up")
    for job_id in ordered:
        site.assert_one_result(job_id, ["succeeded"])


def test_a_worker_that_hears_nothing_leaves_and_the_next_one_takes_what_waited(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.live.worker is not None
    site.live.worker.terminate()
    site.live.worker.wait()
    with Proxy(site.broker.socket) as way:
        with monkeypatch.context() as patch:
            told = {"SECATEUR_BROKER_URL": f"redis://127.0.0.1:{way.port}/0", "SECATEUR_DEAF_SECONDS": "3"}
            patch.setattr(LiveService, "environment", site.live.environment | told)
            site.live.start_worker()
        deaf = site.live.worker
        below = psutil.Process(deaf.pid).children(recursive=True)
        way.strand()  # of itself it would notice after ten seconds
        job_id = order(site)
        assert deaf.wait(timeout=30) == DEAF
    wait_for(lambda: all(gone(process.pid) for process in below), seconds=10)
    assert site.job(job_id)["status"] == "queued"
    site.live.start_worker()
    site.assert_one_result(job_id, ["succeeded"])


def test_a_job_outlives_a_database_that_is_away_for_longer_than_its_lease(
    site: Site, postgresql_server: PostgreSQL, recovery: Recovery
) -> None:
    job_id = site.submit(EPOCHS)
    site.live.wait_for(lambda: site.job(job_id)["checkpoint"] is not None, "a checkpoint")
    assert site.live.worker is not None
    engine, step = site.engine(), site.job(job_id)["checkpoint"]["step"]
    postgresql_server.stop()
    until = time.monotonic() + 1.5 * site.live.settings.lease_seconds
    saved = checkpoints(site, job_id)
    wait_for(lambda: bool(checkpoints(site, job_id) - saved))
    engine.suspend()  # so that it has something left to do
    while time.monotonic() < until:
        answer = site.live.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        assert site.live.alive() and not gone(engine.pid)
        time.sleep(0.2)
    holder = next(process for process in engine.parents() if process.ppid() == site.live.worker.pid)
    holder.suspend()  # so that the lease is still over when it is looked for again
    postgresql_server.restart()
    with recovery.within(10, "database away for longer than a lease: the API answers again"):
        wait_for(lambda: site.live.client.get(f"/v1/jobs/{job_id}").status_code == 200)
    other = reconciled(site)
    holder.resume()
    site.live.wait_for(lambda: site.job(job_id)["checkpoint"]["step"] > step, "a later checkpoint to be noted")
    engine.resume()
    for each in (job_id, other):
        site.assert_one_result(each, ["succeeded"])


def checkpoints(site: Site, job_id: str) -> set[str]:
    """Where the storage has checkpoints of a job."""
    return {key.rpartition("/")[0] for key in open_storage(site.live.settings.storage).list(f"checkpoints/{job_id}")}


def reconciled(site: Site) -> str:
    """Wait for a turn of the reconciler, which rings again for what the broker forgot; returns the id of that job."""
    job_id, broker = order(site), Broker(site.broker.url)
    with Redis(unix_socket_path=str(site.broker.socket)) as client:
        client.flushall()
    wait_for(lambda: job_id in (broker.waiting() or ()))
    broker.close()
    return job_id


# Writers while PostgreSQL crashes


@pytest.fixture
def durable_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL of its own, which flushes its commits to the disk as in production."""
    with postgresql(durable=True) as server:
        yield server


@pytest.fixture
def api(durable_server: PostgreSQL, tmp_path: Path) -> Iterator[LiveService]:
    """An API without workers and without a broker."""
    url = durable_server.url(durable_server.create())
    migrate(url)
    settings = make_settings(tmp_path, url, "redis://127.0.0.1:1/0")
    database = Database(url)
    with database.session_scope() as session:
        _, key = issue_key(session, tenant="default", name="outages", scopes=["write"])
    database.dispose()
    with LiveService(settings, key) as live:
        live.start_api()
        yield live


@dataclass
class Writers:
    """Clients that order jobs one after the other, each until it is acknowledged."""

    live: LiveService
    spec: dict[str, object]
    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def write(self, number: int) -> None:
        """Order until it is over."""
        with httpx.Client(
            base_url=self.live.url, headers=self.live.client.headers, timeout=30, trust_env=False
        ) as client:
            while not self.over.is_set():
                self._order(client, f"{number}-{len(self.acknowledged)}-{random.random()}")

    def _order(self, client: httpx.Client, key: str) -> None:
        while True:
            answer = client.post("/v1/jobs", json=self.spec, headers={"Idempotency-Key": key})
            if answer.status_code == 202:
                self.acknowledged[key] = answer.json()["id"]
                return
            if answer.status_code != 503 or "Retry-After" not in answer.headers:
                self.faults.append(f"{answer.status_code}: {answer.text}")
                return
            self.refused += 1
            time.sleep(0.05)


def test_no_acknowledged_order_is_lost_or_doubled_by_crashes_of_postgresql(
    api: LiveService, durable_server: PostgreSQL, recovery: Recovery
) -> None:
    writers = Writers(api, a_spec(store(api.database, a_model()).id))
    threads = [threading.Thread(target=writers.write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for _ in range(RESTARTS):
        progress(writers)
        durable_server.stop()
        refused(writers)
        durable_server.restart()
        with recovery.within(10, "PostgreSQL crashed: an order is acknowledged again"):
            progress(writers, 1)
    progress(writers)
    writers.over.set()
    for thread in threads:
        thread.join()
    assert writers.faults == []
    with api.database.session_scope(read_only=True) as session:
        stored = list(session.scalars(select(Job.id)))
        keys = list(session.scalars(select(IdempotencyRecord.key)))
    assert sorted(writers.acknowledged.values()) == sorted(stored)
    assert sorted(writers.acknowledged) == sorted(keys)


def progress(writers: Writers, orders: int = 10) -> None:
    """Wait until so many more orders are acknowledged."""
    enough = len(writers.acknowledged) + orders
    wait_for(lambda: len(writers.acknowledged) >= enough or bool(writers.faults), seconds=30)


def refused(writers: Writers) -> None:
    """Wait until another order is."""
    before = writers.refused
    wait_for(lambda: writers.refused > before or bool(writers.faults))
