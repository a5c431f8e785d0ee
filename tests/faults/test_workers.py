"""Workers that die, are stopped for longer than their lease, are rung for too often or are started twice."""

import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
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


def is_training(site: Site, job_id: str) -> bool:
    """Whether a checkpoint has been stored of the job that a worker has."""
    return site.saved(job_id) > 0


def is_publishing(site: Site, job_id: str) -> bool:
    """Whether the first of its files is in storage, and the large one is not."""
    names = {key.split("/", 3)[-1] for key in site.stored(job_id)}
    return "huggingface/config.json" in names and "padding" not in names


@pytest.mark.parametrize("moment", [is_training, is_publishing])
def test_a_worker_that_wakes_after_its_lease_changes_nothing(
    scripted: Site, moment: Callable[[Site, str], bool]
) -> None:
    steps = "300" if moment is is_training else "1"
    job_id = scripted.script("train", steps=steps, padding=str(512 << 20))
    wait_for(lambda: moment(scripted, job_id))
    assert scripted.live.worker is not None
    pid = scripted.live.worker.pid
    stopped = tree(pid)
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    other = scripted.live.add_worker()
    scripted.assert_one_result(job_id, ["worker_lost", "succeeded"])
    at_end = kept(scripted, job_id)
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    next_id = scripted.script("succeed")
    scripted.assert_one_result(next_id, ["succeeded"])
    wait_for(lambda: not engines_below(pid) and not work_folders(scripted, job_id))
    assert kept(scripted, job_id) == at_end
    scripted.live.leave_one()
    assert gone(other.pid)
    last_id = scripted.script("succeed")
    scripted.assert_one_result(last_id, ["succeeded"])
    (attempt,) = scripted.job(last_id)["attempts"]
    assert attempt["worker"].endswith(f":{pid}")


def work_folders(site: Site, job_id: str) -> list[Any]:
    """What attempts at a job have in the scratch folder."""
    return list((site.live.settings.scratch / "jobs").glob(f"{job_id}-*"))


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
