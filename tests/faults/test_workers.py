"""Workers that die, are stopped for longer than their lease, are rung for too often or are started twice."""

from typing import Any

import psutil
from sqlalchemy import select

from service.broker import Broker
from service.tables import Artifact, Attempt, Event, Job, MetricPoint, Model, WebhookDelivery
from tests.faults.conftest import Site, engines_below
from tests.processes import gone, wait_for
from tests.service.webhooks.receiver import receiver

OF_A_JOB = (Attempt, Event, MetricPoint, Artifact, Model)


def kept(site: Site, job_id: str) -> Any:
    """All that the database and the storage hold of a job."""
    with site.live.database.session_scope(read_only=True) as session:
        rows = [session.scalars(select(table).where(table.job_id == job_id)).all() for table in OF_A_JOB]
        found = [session.get_one(Job, job_id), *(row for several in rows for row in several)]
        values = [{column.name: getattr(row, column.key) for column in type(row).__mapper__.columns} for row in found]
    return values, site.stored(job_id)


def tree(pid: int) -> list[psutil.Process]:
    """A worker's process and all below it."""
    worker = psutil.Process(pid)
    return [worker, *worker.children(recursive=True)]


def test_nothing_below_a_worker_outlives_it(scripted: Site) -> None:
    child = scripted.folder / "grandchild"
    job_id = scripted.script("hang_with_child", child=str(child))
    wait_for(lambda: scripted.started(job_id).exists() and child.read_text() != "")
    assert scripted.live.worker is not None
    below = [process.pid for process in tree(scripted.live.worker.pid)[1:]]
    assert int(child.read_text()) in below and len(below) >= 3
    scripted.live.worker.kill()
    scripted.live.worker.wait()
    wait_for(lambda: all(map(gone, below)), seconds=2)
    assert scripted.live.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    scripted.live.start_worker()
    assert scripted.ended(job_id)["status"] == "cancelled"


def is_publishing(site: Site, job_id: str) -> bool:
    """Whether the first of its files is in storage, and the large one is not."""
    names = {key.split("/", 3)[-1] for key in site.stored(job_id)}
    return "huggingface/config.json" in names and "padding" not in names


def stop(site: Site) -> list[psutil.Process]:
    """SIGSTOP the worker and all below it, and start another one."""
    assert site.live.worker is not None
    stopped = tree(site.live.worker.pid)
    for process in stopped:
        process.suspend()
    site.live.add_worker()
    return stopped


def wake(site: Site, job_id: str, stopped: list[psutil.Process]) -> None:
    """SIGCONT, and wait until the worker has dropped the job."""
    for process in stopped:
        process.resume()
    folder = site.live.settings.scratch / "jobs" / f"{job_id}-1"
    wait_for(lambda: not folder.exists() and not engines_below(stopped[0].pid))


def assert_serves(site: Site) -> None:
    """The site's own worker takes the next job."""
    site.live.leave_one()
    assert site.live.worker is not None
    job_id = site.script("succeed")
    site.assert_one_result(job_id, ["succeeded"])
    (attempt,) = site.job(job_id)["attempts"]
    assert attempt["worker"].endswith(f":{site.live.worker.pid}")


def test_a_worker_that_wakes_while_another_has_its_job_leaves_it_alone(scripted: Site) -> None:
    job_id = scripted.script("train", steps="400")
    wait_for(lambda: scripted.saved(job_id) > 0)
    stopped = stop(scripted)
    scripted.live.wait_for(lambda: len(scripted.job(job_id)["attempts"]) == 2, "another attempt")
    wake(scripted, job_id, stopped)
    assert scripted.outcomes(job_id) == ["worker_lost", None]
    scripted.assert_one_result(job_id, ["worker_lost", "succeeded"])
    assert events(scripted, job_id).count("job.requeued") == 1
    assert_serves(scripted)


def test_a_worker_that_wakes_after_the_end_changes_nothing_and_drops_what_it_made(scripted: Site) -> None:
    job_id = scripted.script("train", steps="1", padding=str(512 << 20))
    wait_for(lambda: is_publishing(scripted, job_id))
    stopped = stop(scripted)
    scripted.assert_one_result(job_id, ["worker_lost", "succeeded"])
    at_end = kept(scripted, job_id)
    wake(scripted, job_id, stopped)
    assert_serves(scripted)
    assert kept(scripted, job_id) == at_end


def test_rings_that_come_ten_times_to_two_workers_run_each_job_once(scripted: Site) -> None:
    scripted.live.add_worker()
    broker = Broker(scripted.live.settings.broker)
    with receiver() as hooks:
        url = f"http://127.0.0.1:{hooks.port}/in"
        submitted = [scripted.script("train", steps="20", webhook_url=url) for _ in range(4)]
        for _ in range(10):
            for job_id in submitted:
                broker.ring(job_id)
        for job_id in submitted:
            scripted.assert_one_result(job_id, ["succeeded"])
        scripted.live.wait_for(lambda: broker.waiting() == set(), "the rings to be heard")
        hooks.wait(2 * len(submitted))
        with scripted.live.database.session_scope(read_only=True) as session:
            told = select(WebhookDelivery).where(WebhookDelivery.job_id.in_(submitted))
            deliveries = session.scalars(told).all()
        expected = [(job_id, kind) for job_id in submitted for kind in ("job.started", "job.succeeded")]
        assert sorted((delivery.job_id, delivery.type) for delivery in deliveries) == sorted(expected)
        assert sorted(one.event_id for one in hooks.requests) == sorted(delivery.event_id for delivery in deliveries)
    broker.close()
    for job_id in submitted:
        scripted.assert_one_result(job_id, ["succeeded"])
        started = [event for event in events(scripted, job_id) if event == "job.started"]
        assert started == ["job.started"]


def events(site: Site, job_id: str) -> list[str]:
    """Types of a job's events, in order."""
    with site.live.database.session_scope(read_only=True) as session:
        return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.id)))
