"""Jobs under load: how soon a worker begins, and how long one tenant waits behind another's flood.

What an engine says is seen with the next heartbeat of its worker, up to `heartbeat_seconds` (2 s) later.
"""

import time
from typing import Any

from sqlalchemy import func, select

from service.states import FINAL
from service.tables import Job
from tests.benchmarks.load_site import LoadSite, admin_key, load
from tests.benchmarks.open_loop import percentile

ORDERS = 5
FLOOD = 30
SINGLES = 3
LONGEST_SECONDS = 300
_LOOK_SECONDS = 0.02
_AT_CLAIM = 2
"""The version of a job that was claimed once; it grows with the first thing that its engine tells."""


def scheduling(site: LoadSite, _arguments: Any) -> None:
    """Orders one after the other to an idle worker: until one is claimed, and until its engine's first line is seen."""
    site.live.start_worker()
    kinds = {"file to file": site.unstructured(), "with torch": site.order()}
    for name, spec in kinds.items():
        finish(site, [site.created(spec)])
        spans = [begun(site, site.created(spec)) for _ in range(ORDERS)]
        claimed, spoke = ([span[part] for span in spans] for part in (0, 1))
        told = f"queued to claimed p50 {percentile(claimed, 0.5):.0f}, max {percentile(claimed, 1):.0f} ms"
        print(f"{name}, n {ORDERS}: {told}")
        told = f"to the engine's first line p50 {percentile(spoke, 0.5):.0f}, max {percentile(spoke, 1):.0f} ms"
        print(f"{told}; max / target of 5 s = {percentile(spoke, 1) / 5000:.2f}; {load()}", flush=True)


def begun(site: LoadSite, job_id: str) -> tuple[float, float]:
    """Seconds from the order to the claim, and to the first line of the engine, as a client could see them."""
    ordered, claimed = time.monotonic(), None
    while time.monotonic() - ordered < LONGEST_SECONDS:
        version = version_of(site, job_id)
        if claimed is None and version >= _AT_CLAIM:
            claimed = time.monotonic() - ordered
        if claimed is not None and version > _AT_CLAIM:
            spoke = time.monotonic() - ordered
            finish(site, [job_id])
            return claimed, spoke
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"job {job_id} did not begin\n{site.live.log()}")


def version_of(site: LoadSite, job_id: str) -> int:
    """How often the job has changed."""
    with site.database.session_scope(read_only=True) as session:
        return session.scalars(select(Job.version).where(Job.id == job_id)).one()


def finish(site: LoadSite, ids: list[str]) -> None:
    """Wait until the jobs have succeeded."""
    waiting = select(func.count()).where(Job.id.in_(ids), Job.status.not_in(FINAL))

    def ended() -> bool:
        with site.database.session_scope(read_only=True) as session:
            return session.scalar(waiting) == 0

    site.live.wait_for(ended, "the jobs", LONGEST_SECONDS)
    with site.database.session_scope(read_only=True) as session:
        failed = session.scalars(select(Job).where(Job.id.in_(ids), Job.status != "succeeded")).first()
        assert failed is None, (failed.error, site.live.log())


def fairness(site: LoadSite, _arguments: Any) -> None:
    """One tenant orders many jobs, then another single ones: how long those wait, in lengths of the first's jobs."""
    if site.live.worker is None:
        site.live.start_worker()
    flood = [site.created(site.unstructured()) for _ in range(FLOOD)]
    other = admin_key(site.live.settings, "other")
    model_id = site.pushed(site.folder / "model", other)
    singles = []
    for _ in range(SINGLES):
        singles.append(site.created(site.unstructured(model_id=model_id), other))
        finish(site, singles[-1:])
    with site.database.session_scope(read_only=True) as session:
        waited = [wait_of(session.get_one(Job, job_id)) for job_id in singles]
        done = session.scalars(select(Job).where(Job.id.in_(flood), Job.finished_at.is_not(None))).all()
        left = FLOOD - len(done)
        longest = max(
            (job.finished_at - job.started_at).total_seconds() for job in done if job.finished_at and job.started_at
        )
    print(f"{FLOOD} jobs of one tenant, the longest took {longest:.2f} s; {left} still waited when the other was done")
    told = ", ".join(f"{seconds:.2f}" for seconds in waited)
    print(
        f"the other's jobs waited {told} s; the longest wait / a job's length = {max(waited) / longest:.2f}; {load()}"
    )


def wait_of(job: Job) -> float:
    """Seconds from the order to the claim."""
    assert job.started_at is not None
    return (job.started_at - job.created_at).total_seconds()
