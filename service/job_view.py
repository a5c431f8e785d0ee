"""A job as the API shows it: the row, its attempts, its place in the queue and its links."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from sqlalchemy import and_, bindparam, func, or_, select
from sqlalchemy.orm import Session, aliased

from service.schemas import (
    AttemptView,
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

_OTHER = aliased(Job)
_GOES_FIRST = or_(_OTHER.priority > Job.priority, and_(_OTHER.priority == Job.priority, _OTHER.id < Job.id))
# Built once: building it costs more than running it.
_AHEAD = select(Job.id, select(func.count()).where(_OTHER.status == "queued", _GOES_FIRST).scalar_subquery()).where(
    Job.id.in_(bindparam("ids", expanding=True))
)


def base_url(request: Request) -> str:
    """What links in answers start with."""
    given = request.app.state.settings.public_url
    return str(given or request.base_url).rstrip("/")


def job_views(session: Session, rows: list[Job], base: str, *, whole: bool = False) -> list[JobView]:
    """Views of many jobs with two more queries in all; what inspections found only where they are shown `whole`."""
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    of_these = select(Attempt).where(Attempt.job_id.in_([job.id for job in rows])).order_by(Attempt.token)
    for attempt in session.scalars(of_these):
        attempts[attempt.job_id].append(attempt)
    places = _places(session, [job.id for job in rows if job.status == "queued"])
    return [_view(job, attempts[job.id], places.get(job.id), base, whole) for job in rows]


def job_view(session: Session, job: Job, base: str) -> JobView:
    """The view of one job."""
    return job_views(session, [job], base, whole=True)[0]


def etag(view: JobView, version: int) -> str:
    """A tag that changes with everything a client could see change."""
    return f'"{version}-{view.queue.position or 0}"'


def _places(session: Session, ids: list[str]) -> dict[str, int]:
    if not ids:
        return {}
    return {row[0]: row[1] + 1 for row in session.execute(_AHEAD, {"ids": ids})}


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
        error=JobErrorView(**job.error) if job.error else None,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
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
    if job.status in ("queued", "running", "cancelling"):
        links["cancel"] = f"{own}/cancel"
    return links
