"""How the service is doing and what it can do."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.catalog import FAMILIES
from service.config import Settings
from service.deps import BrokerDep, DatabaseDep, Reader, SessionDep, SettingsDep, StorageDep
from service.errors import Unavailable
from service.paging import LARGEST
from service.problems import responses
from service.readiness import look
from service.routes.jobs import LONGEST_WAIT
from service.schemas import Alive, Capabilities, Limits, Readiness, WorkerView
from service.specs import QUALITY_METRICS
from service.storage import Storage
from service.support import family_view, other_families, structure_support
from service.worker_view import live_workers

router = APIRouter(tags=["operations"])
public = APIRouter(tags=["operations"])

_SANDBOX = "bubblewrap"
"""How levels begin that keep a job's process from the machine; the others only keep its death from the worker."""
WITHOUT_SANDBOX = "Jobs run as processes of their own, but without a sandbox; install bubblewrap where the worker runs."


@public.get("/healthz", summary="Whether the process answers", response_model=Alive)
async def healthz() -> Alive:
    """Looks at nothing else: a failing database must not make an orchestrator restart the API."""
    return Alive()


@public.get(
    "/readyz",
    summary="Whether the service can do its work",
    response_model=Readiness,
    responses={503: responses()[503]},
)
def readyz(settings: SettingsDep, database: DatabaseDep, broker: BrokerDep, storage: StorageDep) -> Readiness:
    """Database and schema, broker, storage and a live worker; the sandbox level is told, never a reason for 503."""
    state = look(settings, database, broker, storage)
    if missing := state.missing:
        names = ", ".join(missing)
        raise Unavailable(
            f"Not ready; missing: {names}. {' '.join(missing.values())}",
            code="NOT_READY",
            headers={"Retry-After": "5"},
            extra={"missing": names},
        )
    levels = sorted({worker.sandbox for worker in state.workers})
    unconfined = [] if all(level.startswith(_SANDBOX) for level in levels) else [WITHOUT_SANDBOX]
    return Readiness(checks=dict.fromkeys(state.remedies, True), sandbox=levels, warnings=unconfined + state.warnings)


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response, responses=responses())
def metrics(principal: Reader, session: SessionDep, storage: StorageDep, request: Request) -> Response:
    """Text exposition format; requests and bytes are of this process, jobs and workers of the whole service."""
    figures = request.app.state.telemetry.render(session, storage.free_bytes())
    return Response(figures, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/capabilities", summary="What this service can do", response_model=Capabilities, responses=responses())
def capabilities(principal: Reader, session: SessionDep, settings: SettingsDep, storage: StorageDep) -> Any:
    """Families, structures and criteria, exports, limits, and the workers that are alive with their devices."""
    return Capabilities(
        families=[family_view(family) for family in FAMILIES.values()],
        other_families=other_families(),
        tasks=list(QUALITY_METRICS),
        structures=structure_support(),
        exports=sorted({export for family in FAMILIES.values() for export in family.exports}),
        metrics={task: list(names) for task, names in QUALITY_METRICS.items()},
        limits=Limits(
            json_body=settings.max_json_bytes,
            upload=_largest_upload(settings, storage),
            page=LARGEST,
            wait_seconds=LONGEST_WAIT,
            attempts=settings.max_attempts,
        ),
        workers=[
            WorkerView(name=worker.name, devices=worker.devices, sandbox=worker.sandbox, started_at=worker.started_at)
            for worker in live_workers(session)
        ],
    )


def _largest_upload(settings: Settings, storage: Storage) -> int | None:
    if settings.max_upload_bytes is not None:
        return settings.max_upload_bytes
    free = storage.free_bytes()
    return None if free is None else max(0, free - settings.disk_reserve_bytes)
