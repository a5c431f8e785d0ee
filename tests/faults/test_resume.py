"""Whatever interrupts a fine-tuning, it goes on from its checkpoint and makes the very weights of an unbroken run."""

from typing import Any

import pytest
from sqlalchemy import select

from service.storage import open_storage
from service.tables import Artifact, Event
from tests.faults.conftest import Site
from tests.faults.test_faults import kill_worker_and_restart
from tests.processes import gone, wait_for

EPOCHS = 60


def weights(site: Site, job_id: str) -> str:
    """Digest of the weights that a job made."""
    job = site.ended(job_id)
    assert job["status"] == "succeeded", (job["error"], site.live.log())
    with site.live.database.session_scope(read_only=True) as session:
        made = select(Artifact.sha256).where(
            Artifact.job_id == job_id, Artifact.path == "huggingface/model.safetensors"
        )
        return session.scalars(made).one()


def resumed_at(site: Site, job_id: str) -> list[int]:
    """Steps at which attempts went on from a checkpoint."""
    with site.live.database.session_scope(read_only=True) as session:
        rows = select(Event.data).where(Event.job_id == job_id, Event.type == "checkpoint.resumed").order_by(Event.id)
        return [data["step"] for data in session.scalars(rows)]


def saved(site: Site, job_id: str) -> int:
    """Step of the job's checkpoint; 0 without one."""
    checkpoint: dict[str, Any] | None = site.job(job_id)["checkpoint"]
    return 0 if checkpoint is None else int(checkpoint["step"])


@pytest.fixture(scope="session")
def unbroken(damaged_site: Site) -> str:
    """Digest of the weights of a run that nothing disturbs."""
    damaged_site.heal()
    return weights(damaged_site, damaged_site.submit(EPOCHS))


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_checkpoint(site: Site, unbroken: str) -> None:
    job_id = site.submit(EPOCHS)
    site.live.wait_for(lambda: saved(site, job_id) > 8, "two checkpoints")
    kill_worker_and_restart(site)
    at_least = saved(site, job_id)
    assert weights(site, job_id) == unbroken
    assert site.outcomes(job_id) == ["worker_lost", "succeeded"]
    assert resumed_at(site, job_id) == [at_least]
    assert list(open_storage(site.live.settings.storage).list(f"checkpoints/{job_id}")) == []


def test_a_paused_job_frees_its_worker_and_goes_on(site: Site, unbroken: str) -> None:
    job_id = site.submit(EPOCHS)
    site.live.wait_for(lambda: saved(site, job_id) > 0, "a checkpoint")
    engine = site.engine()
    assert site.live.client.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    wait_for(lambda: site.job(job_id)["status"] == "paused", seconds=30)
    assert gone(engine.pid)
    at = saved(site, job_id)
    site.assert_one_result(site.submit(epochs=1), ["succeeded"])
    assert site.live.client.post(f"/v1/jobs/{job_id}/resume").status_code == 200
    assert weights(site, job_id) == unbroken
    assert resumed_at(site, job_id) == [at] and at > 0
    assert site.outcomes(job_id) == ["paused", "succeeded"]


def test_a_worker_that_leaves_hands_the_next_one_what_it_has_done(site: Site, unbroken: str) -> None:
    job_id = site.submit(EPOCHS)
    site.running(job_id)
    assert site.live.worker is not None
    site.live.worker.terminate()
    assert site.live.worker.wait(timeout=40) == 0
    at = saved(site, job_id)
    site.live.start_worker()
    assert weights(site, job_id) == unbroken
    assert resumed_at(site, job_id) == [at] and at > 0
    assert site.outcomes(job_id) == ["returned", "succeeded"]
