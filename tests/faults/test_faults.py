"""Whatever is killed while a job runs, it ends as exactly one finished job with one set of artifacts."""

from pathlib import Path

from redis import Redis

from service.embedded import EmbeddedBroker
from tests.faults.conftest import SCRIPTED, Site, make_settings, open_site
from tests.servers import PostgreSQL

STEPS = "150"
"""Three seconds, with a checkpoint at every fifth step."""


def trains(site: Site) -> str:
    """A job that is being trained; its id."""
    job_id = site.script("train", steps=STEPS)
    site.running(job_id)
    return job_id


def test_the_engine_is_killed(scripted: Site) -> None:
    job_id = trains(scripted)
    scripted.engine().kill()
    scripted.assert_one_result(job_id, ["engine_killed", "succeeded"])


def test_the_api_is_killed(scripted: Site) -> None:
    job_id = trains(scripted)
    assert scripted.live.api is not None
    scripted.live.api.kill()
    scripted.live.api.wait()
    scripted.live.start_api()
    scripted.assert_one_result(job_id, ["succeeded"])


def test_the_broker_is_flushed_and_killed(scripted: Site) -> None:
    site, running = scripted, trains(scripted)
    queued = site.script("succeed")
    with Redis(unix_socket_path=str(site.broker.socket)) as client:
        client.flushall()
    assert site.broker.process is not None
    site.broker.process.kill()
    site.broker.process.wait()
    for file in (site.broker.directory / "appendonlydir").iterdir():
        file.unlink()
    unheard = site.script("succeed")
    assert site.live.client.post(f"/v1/jobs/{unheard}/cancel").status_code == 200
    site.broker.start()
    assert site.job(unheard)["status"] == "cancelled"
    for job_id in (running, queued):
        site.assert_one_result(job_id, ["succeeded"])


def test_the_database_crashes_and_comes_back(scripted: Site, postgresql_server: PostgreSQL) -> None:
    job_id = trains(scripted)
    postgresql_server.stop()
    answer = scripted.live.client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 503 and "Retry-After" in answer.headers
    postgresql_server.restart()
    scripted.assert_one_result(job_id, ["succeeded"])


def test_the_worker_is_killed_on_the_embedded_default(sqlite_template: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database = tmp_path / "data/secateur.db"
    database.write_bytes(sqlite_template.read_bytes())
    broker = EmbeddedBroker(tmp_path / "data/broker")
    broker.start()
    try:
        settings = make_settings(tmp_path, f"sqlite:///{database}", broker.url, sandbox="process")
        for site in open_site(tmp_path, settings, broker, SCRIPTED):
            job_id = trains(site)
            assert site.live.worker is not None
            site.live.worker.kill()
            site.live.worker.wait()
            site.live.start_worker()
            site.assert_one_result(job_id, ["worker_lost", "succeeded"])
    finally:
        broker.stop()
