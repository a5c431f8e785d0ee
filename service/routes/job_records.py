"""What a job leaves behind: events, training curves, artifacts, the model as one archive, the report."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.deps import Reader, SessionDep, StorageDep
from service.downloads import job_archive
from service.errors import NotFound
from service.job_view import base_url
from service.paging import LARGEST, Limit
from service.problems import responses
from service.retention import check_kept
from service.routes.artifacts import DOWNLOAD, reader, serve_tar
from service.routes.jobs import owned_job
from service.schemas import ArtifactView, EventView, Page, PointView, Series
from service.storage.serve import serve
from service.tables import Artifact, Event, Job, MetricPoint

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@router.get("/{job_id}/events", summary="List a job's events", response_model=Page[EventView], responses=responses(404))
def list_events(
    principal: Reader,
    session: SessionDep,
    job_id: str,
    after: Annotated[str | None, Query(description="id of the last event already known")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before; the same as after")] = None,
    limit: Limit = 20,
) -> Any:
    """Oldest first, so that a reader can go on where it stopped."""
    owned_job(session, principal.tenant, job_id)
    size = min(limit, LARGEST)
    query = select(Event).where(Event.job_id == job_id, Event.id > (after or cursor or ""))
    rows = list(session.scalars(query.order_by(Event.id).limit(size + 1)))
    views = [event_view(row) for row in rows[:size]]
    return Page[EventView](data=views, next_cursor=views[-1].id if len(rows) > size else None)


def event_view(row: Event) -> EventView:
    """An event as clients see it."""
    return EventView(id=row.id, time=row.time, level=row.level, type=row.type, message=row.message, data=row.data)


@router.get("/{job_id}/metrics", summary="Get a job's curves", response_model=Page[Series], responses=responses(404))
def list_metrics(
    principal: Reader,
    session: SessionDep,
    job_id: str,
    name: Annotated[str | None, Query(description="one series only")] = None,
    resolution: Annotated[int | None, Query(ge=2, description="at most this many points per series")] = None,
) -> Any:
    """Series of the latest attempt; a value that was not finite is null."""
    job = owned_job(session, principal.tenant, job_id)
    query = select(MetricPoint).where(MetricPoint.job_id == job_id, MetricPoint.token == job.token)
    if name is not None:
        query = query.where(MetricPoint.name == name)
    series: dict[str, list[PointView]] = {}
    for point in session.scalars(query.order_by(MetricPoint.name, MetricPoint.step)):
        series.setdefault(point.name, []).append(PointView(step=point.step, time=point.time, value=point.value))
    return Page[Series](data=[Series(name=key, points=thin(points, resolution)) for key, points in series.items()])


def thin(points: list[PointView], resolution: int | None) -> list[PointView]:
    """At most `resolution` of the points, evenly spaced, the first and the last among them."""
    if resolution is None or len(points) <= resolution:
        return points
    last = len(points) - 1
    return [points[round(index * last / (resolution - 1))] for index in range(resolution)]


@router.get(
    "/{job_id}/artifacts",
    summary="List a job's artifacts",
    response_model=Page[ArtifactView],
    responses=responses(404),
)
def list_artifacts(principal: Reader, session: SessionDep, job_id: str, request: Request) -> Any:
    """Every file that the job published, by path, on one page."""
    job = owned_job(session, principal.tenant, job_id)
    base = base_url(request)
    views = [
        ArtifactView(
            id=row.id,
            job_id=row.job_id,
            path=row.path,
            kind=row.kind,
            media_type=row.media_type,
            size=row.size,
            sha256=row.sha256,
            content_url=f"{base}/v1/artifacts/{row.id}/content",
            created_at=row.created_at,
            expires_at=job.expires_at,
            expired_at=job.expired_at,
        )
        for row in _artifacts(session, job_id)
    ]
    return Page[ArtifactView](data=views)


def _artifacts(session: Session, job_id: str) -> list[Artifact]:
    return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.path)))


@router.head(
    "/{job_id}/model",
    summary="Ask for the archive's size and digest",
    **DOWNLOAD,
)
@router.get(
    "/{job_id}/model",
    summary="Download what a job made, as a tar",
    **DOWNLOAD,
)
def get_job_model(
    principal: Reader, session: SessionDep, storage: StorageDep, job_id: str, request: Request
) -> Response:
    """The Hugging Face directory at the root, ONNX under `onnx/`; ETag is the sha256, `Range` resumes."""
    job = _with_result(session, principal.tenant, job_id)
    assert job.result is not None
    if job.kind == "inspection":
        raise NotFound("An inspection makes no model; it has a report.", code="NO_MODEL")
    check_kept(job)
    files = {name: (artifact.size, artifact.key) for name, artifact in job_archive(_artifacts(session, job_id))}
    sha256 = job.result["archive"]["sha256"]
    return serve_tar(request, storage, files, sha256=sha256, filename=f"{job.name}.tar")


def _with_result(session: Session, tenant: str, job_id: str) -> Job:
    job = owned_job(session, tenant, job_id)
    if job.result is None:
        raise NotFound(
            f"The job has no result; it is {job.status}.", code="NO_RESULT", extra={"job_status": job.status}
        )
    return job


@router.get(
    "/{job_id}/report",
    summary="Get a job's report",
    response_class=Response,
    responses={
        **responses(404, 410),
        200: {"content": {"text/html": {}, "application/json": {}}, "description": "the report"},
    },
)
def get_report(principal: Reader, session: SessionDep, storage: StorageDep, job_id: str, request: Request) -> Response:
    """A self-contained HTML page; the same figures as JSON where `Accept` prefers application/json."""
    check_kept(_with_result(session, principal.tenant, job_id))
    form = "json" if prefers_json(request.headers.get("accept", "")) else "html"
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.path == f"report/report.{form}")
    artifact = session.scalar(query)
    if artifact is None:
        raise NotFound("This job has no report.")
    return serve(
        request,
        size=artifact.size,
        sha256=artifact.sha256,
        media_type="text/html; charset=utf-8" if form == "html" else "application/json",
        filename=f"report.{form}",
        read=reader(request, storage, artifact.key),
        extra={
            "Content-Disposition": f'inline; filename="report.{form}"',
            "Content-Security-Policy": _REPORT_POLICY,
            "Vary": "Accept",
        },
    )


def prefers_json(accept: str) -> bool:
    """Whether an Accept header ranks application/json above text/html (RFC 9110, 12.5.1)."""
    ranked: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_type, _, parameters = item.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            ranked[media_type.strip()] = float(quality) if quality else 1.0
        except ValueError:
            ranked[media_type.strip()] = 1.0
    return ranked.get("application/json", 0.0) > ranked.get("text/html", 0.0)
