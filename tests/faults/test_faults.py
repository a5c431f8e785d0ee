"""Whatever is killed while a job runs, it ends as exactly one finished job with one set of artifacts."""

from pathlib import Path

import psutil
from redis import Redis

from service.broker import Broker
from service.embedded import EmbeddedBroker
from tests.faults.conftest import Site, make_settings, open_site
from tests.faults.recovery import Recovery
from tests.processes import gone, wait_for
from tests.servers import PostgreSQL


def test_the_engine_is_killed(site: Site) -> None:
    job_id = site.submit()
    site.running(job_id)
    site.engine().kill()
    site.assert_one_result(job_id, ["engine_killed", "succeeded"])


def kill_worker_and_restart(site: Site) -> None:
    """SIGKILL the worker's main process alone; everything below it must be gone within two seconds."""
    assert site.live.worker is not None
    below = psutil.Process(site.live.worker.pid).children(recursive=True)
    assert len(below) >= 2
    site.live.worker.kill()
    site.live.worker.wait()
    wait_for(lambda: all(gone(process.pid) for process in below), seconds=2)
    site.live.start_worker()


def test_the_worker_is_killed(site: Site, recovery: Recovery) -> None:
    job_id = site.submit()
    site.running(job_id)
    kill_worker_and_restart(site)
    with recovery.within(45, "worker killed: its job makes progress again"):
        site.live.wait_for(lambda: len(site.outcomes(job_id)) == 2, "another attempt")
        site.running(job_id)
    site.assert_one_result(job_id, ["worker_lost", "succeeded"])


def test_the_api_is_killed(site: Site) -> None:
    job_id = site.submit()
    site.running(job_id)
    assert site.live.api is not None
    site.live.api.kill()
    site.live.api.wait()
    site.live.start_api()
    site.assert_one_result(job_id, ["succeeded"])


def test_the_broker_is_flushed_and_killed(site: Site) -> None:
    running = site.submit()
    site.running(running)
    queued = site.submit(epochs=1)
    with Redis(unix_socket_path=str(site.broker.socket)) as client:
        client.flushall()
    assert site.broker.process is not None
    site.broker.process.kill()
    site.broker.process.wait()
    for file in (site.broker.directory / "appendonlydir").iterdir():
        file.unlink()
    unheard = site.submit(epochs=1)
    assert site.live.client.post(f"/v1/jobs/{unheard}/cancel").status_code == 200
    site.broker.start()
    assert site.job(unheard)["status"] == "cancelled"
    for job_id in (running, queued):
        site.assert_one_result(job_id, ["succeeded"])


def test_the_database_crashes_and_comes_back(site: Site, postgresql_server: PostgreSQL) -> None:
    job_id = site.submit()
    site.running(job_id)
    postgresql_server.stop()
    answer = site.live.client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 503 and "Retry-After" in answer.headers
    postgresql_server.restart()
    site.assert_one_result(job_id, ["succeeded"])


def test_a_worker_that_is_told_to_leave_gives_the_job_back(site: Site) -> None:
    job_id = site.submit()
    site.running(job_id)
    assert site.live.worker is not None
    site.live.worker.terminate()
    assert site.live.worker.wait(timeout=20) == 0
    job = site.job(job_id)
    assert job["status"] == "queued" and site.outcomes(job_id) == ["returned"]
    site.live.start_worker()
    site.assert_one_result(job_id, ["returned", "succeeded"])


def test_a_ring_that_comes_ten_times_runs_the_job_once(site: Site) -> None:
    job_id = site.submit()
    broker = Broker(site.live.settings.broker)
    for _ in range(10):
        broker.ring(job_id)
    site.assert_one_result(job_id, ["succeeded"])
    site.live.wait_for(lambda: broker.waiting() == set(), "the rings to be heard")
    broker.close()
    site.assert_one_result(job_id, ["succeeded"])


def test_a_cancelled_job_stops(site: Site) -> None:
    job_id = site.submit(epochs=1000)
    site.running(job_id)
    engine = site.engine()
    assert site.live.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    wait_for(lambda: gone(engine.pid), seconds=10)
    job = site.ended(job_id)
    assert job["status"] == "cancelled" and job["result"] is None
    assert site.outcomes(job_id) == ["cancelled"]


def test_the_worker_is_killed_on_the_embedded_default(sqlite_template: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database = tmp_path / "data/secateur.db"
    database.write_bytes(sqlite_template.read_bytes())
    broker = EmbeddedBroker(tmp_path / "data/broker")
    broker.start()
    try:
        for site in open_site(tmp_path, make_settings(tmp_path, f"sqlite:///{database}", broker.url), broker):
            job_id = site.submit()
            site.running(job_id)
            kill_worker_and_restart(site)
            site.assert_one_result(job_id, ["worker_lost", "succeeded"])
    finally:
        broker.stop()
