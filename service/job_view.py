"""A job as the API shows it: the row, its attempts, its place in the queue and its links."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from service import turns
from service.remedies import remedy
from service.schemas import (
    AttemptView,
    CheckpointView,
    InspectionView,
    JobErrorView,
    JobView,
    JobWarning,
    Progress,
    Queue,
    ResultView,
)
from service.tables import Attempt, Job

_SHOWN = ("verdict", "before", "after", "engine")
"""Fields of a stored result that are public; what the supervisor keeps beside them is not."""
_POSSIBLE = {
    "queued": ("cancel", "pause"),
    "running": ("cancel", "pause"),
    "pausing": ("cancel",),
    "paused": ("cancel", "resume"),
    "failed": ("retry",),
    "cancelled": ("retry",),
}
"""What a client can ask of a job in each state, besides `clone`."""


def base_url(request: Request) -> str:
    """What links in answers start with."""
    given = request.app.state.settings.public_url
    return str(given or request.base_url).rstrip("/")


def job_views(session: Session, rows: list[Job], base: str, *, whole: bool = False) -> list[JobView]:
    """Views of many jobs with at most two more queries in all; what inspections found only where shown `whole`."""
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    if started := [job.id for job in rows if job.token]:
        of_these = select(Attempt).where(Attempt.job_id.in_(started)).order_by(Attempt.token)
        for attempt in session.scalars(of_these):
            attempts[attempt.job_id].append(attempt)
    places = turns.places(session, [job.id for job in rows if job.status == "queued"])
    return [_view(job, attempts[job.id], places.get(job.id), base, whole) for job in rows]


def job_view(session: Session, job: Job, base: str) -> JobView:
    """The view of one job."""
    return job_views(session, [job], base, whole=True)[0]


def etag(view: JobView, version: int) -> str:
    """A tag that changes with everything a client could see change."""
    return f'"{version}-{view.queue.position or 0}"'


def _view(job: Job, attempts: Iterable[Attempt], place: int | None, base: str, whole: bool) -> JobView:
    return JobView(
        id=job.id,
        kind="inspection" if job.kind == "inspection" else "compression",
        name=job.name,
        metadata=job.metadata_,
        status=job.status,
        phase=job.phase,
        spec=job.spec,
        configuration=job.configuration | ({"webhook_url": job.webhook_url} if job.kind == "compression" else {}),
        progress=Progress(**job.progress),
        queue=Queue(position=place),
        attempts=[
            AttemptView(
                number=number,
                worker=attempt.worker,
                started_at=attempt.started_at,
                finished_at=attempt.finished_at,
                outcome=attempt.outcome,
            )
            for number, attempt in enumerate(attempts, start=1)
        ],
        warnings=[JobWarning(**warning) for warning in [*job.advice, *job.warnings]],
        result=_result(job, base),
        inspection=_inspection(job, base) if whole else None,
        error=JobErrorView(**job.error, advice=remedy(job.error["code"])) if job.error else None,
        checkpoint=CheckpointView(step=job.checkpoint["step"]) if job.checkpoint else None,
        cloned_from=job.cloned_from,
        fingerprint=job.fingerprint,
        request_id=job.request_id,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        expired_at=job.expired_at,
        links=_links(job, base),
    )


def _result(job: Job, base: str) -> ResultView | None:
    if job.result is None or job.kind == "inspection":
        return None
    shown: dict[str, Any] = {name: job.result[name] for name in _SHOWN}
    return ResultView(model_id=job.result.get("model_id"), report_url=f"{base}/v1/jobs/{job.id}/report", **shown)


def _inspection(job: Job, base: str) -> InspectionView | None:
    if job.result is None or job.kind != "inspection":
        return None
    return InspectionView(**job.result, report_url=f"{base}/v1/jobs/{job.id}/report")


def _links(job: Job, base: str) -> dict[str, str]:
    own = f"{base}/v1/jobs/{job.id}"
    links = {"self": own} | {name: f"{own}/{name}" for name in ("events", "metrics", "artifacts")}
    if job.result is not None:
        made = ("report",) if job.kind == "inspection" else ("model", "report")
        links |= {name: f"{own}/{name}" for name in made}
    return links | {name: f"{own}/{name}" for name in (*_POSSIBLE.get(job.status, ()), "clone")}
