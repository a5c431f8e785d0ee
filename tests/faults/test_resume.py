"""Whatever interrupts a fine-tuning, it goes on from its checkpoint and makes the very files of an unbroken run."""

import os
import random
import signal

import psutil
import pytest
from sqlalchemy import select

from service.tables import Artifact
from tests.faults.conftest import Site
from tests.faults.recovery import Recovery
from tests.processes import gone, wait_for

EPOCHS = {"short": 40, "production": 120}
"""By leases: a pause is noticed at the next heartbeat, before the end."""


def made(site: Site, job_id: str) -> dict[str, str]:
    """Digests of the network that a job made, of its config and tokenizer too."""
    job = site.ended(job_id)
    assert job["status"] == "succeeded", (job["error"], site.live.log())
    with site.live.database.session_scope(read_only=True) as session:
        files = select(Artifact.path, Artifact.sha256).where(Artifact.job_id == job_id, Artifact.kind == "huggingface")
        return {path: digest for path, digest in session.execute(files) if not path.endswith(".md")}


@pytest.fixture(scope="session")
def unbroken(damaged_site: Site, leases: str) -> dict[str, str]:
    """What a run makes that nothing disturbs."""
    damaged_site.heal()
    return made(damaged_site, damaged_site.submit(EPOCHS[leases]))


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_checkpoint(
    site: Site, unbroken: dict[str, str], recovery: Recovery
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    share = random.Random(seed).uniform(0, 0.6)
    print(f"seed {seed}: killed when {share:.0%} are done")
    job_id = site.submit(EPOCHS[recovery.leases])
    site.live.wait_for(lambda: site.job(job_id)["progress"]["fraction"] >= share and site.saved(job_id) > 0, "the step")
    assert site.live.worker is not None
    below = psutil.Process(site.live.worker.pid).children(recursive=True)
    os.killpg(site.live.worker.pid, signal.SIGKILL)
    site.live.worker.wait()
    at = site.saved(job_id)
    with recovery.within(45, "worker and all below it killed: its job makes progress again"):
        site.live.start_worker()
        site.live.wait_for(lambda: site.resumed_at(job_id) != [], "another attempt that goes on")
    assert all(gone(process.pid) for process in below)
    assert made(site, job_id) == unbroken
    site.assert_one_result(job_id, ["worker_lost", "succeeded"])
    assert site.resumed_at(job_id) == [at]
    assert not [key for key in site.stored(job_id) if key.startswith("checkpoints/")]


def test_a_job_that_is_paused_and_then_handed_on_makes_the_same(
    site: Site, unbroken: dict[str, str], leases: str
) -> None:
    job_id = site.submit(EPOCHS[leases])
    site.live.wait_for(lambda: site.saved(job_id) > 0, "a checkpoint")
    engine = site.engine()
    assert site.live.client.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    wait_for(lambda: site.job(job_id)["status"] == "paused", seconds=30)
    assert gone(engine.pid)
    paused_at = site.saved(job_id)
    site.assert_one_result(site.order(), ["succeeded"])
    assert site.live.client.post(f"/v1/jobs/{job_id}/resume").status_code == 200
    site.live.wait_for(lambda: site.saved(job_id) > paused_at, "the job to go on")
    assert site.live.worker is not None
    site.live.worker.terminate()
    assert site.live.worker.wait(timeout=40) == 0
    job, left_at = site.job(job_id), site.saved(job_id)
    assert job["status"] == "queued" and left_at > paused_at > 0
    site.live.start_worker()
    assert made(site, job_id) == unbroken
    assert site.resumed_at(job_id) == [paused_at, left_at]
    site.assert_one_result(job_id, ["paused", "returned", "succeeded"])
