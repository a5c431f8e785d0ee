"""The HTTP application: routers, middleware, the one handler for errors, and what lives as long as the process."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from threading import Semaphore
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from service import openapi, problems
from service.auth import KeyUse, install_admin_key
from service.broker import Broker
from service.callers import Callers
from service.config import Settings, get_settings
from service.db import Database
from service.deps import Require
from service.hosts import Hosts
from service.intake import scratch
from service.middleware import RequestMiddleware
from service.observe import Telemetry
from service.rates import Rates
from service.reconciler import Reconciler
from service.routes import (
    artifacts,
    audit,
    datasets,
    estimates,
    event_stream,
    inspections,
    job_records,
    jobs,
    keys,
    lifecycle,
    lineage,
    manifests,
    models,
    operations,
    submission,
    tenants,
    uploads,
    webhooks,
)
from service.scrub import Scrubber
from service.storage import open_storage
from service.webhooks.addresses import Addresses
from service.webhooks.sender import Sender

PUBLIC = frozenset({"/healthz", "/readyz", "/docs"})
"""Routes without a key; the OpenAPI document, which FastAPI adds itself, is the fourth."""

ROUTERS: tuple[APIRouter, ...] = (  # tried in this order: what is asked most often stands first
    jobs.router,
    models.router,
    lineage.router,
    manifests.router,
    uploads.router,
    inspections.router,
    datasets.router,
    estimates.router,
    lifecycle.router,
    job_records.router,
    event_stream.router,
    artifacts.router,
    keys.router,
    tenants.router,
    audit.router,
    webhooks.router,
    operations.router,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for these settings, by default the environment's."""
    settings = settings or get_settings()
    app = FastAPI(
        title="Secateur",
        version="1",
        summary="Prunes, fine-tunes and measures Hugging Face NLP models.",
        lifespan=_lifespan(settings),
        redoc_url=None,
        docs_url=None,
        swagger_ui_oauth2_redirect_url=None,
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.settings = settings
    app.state.telemetry = Telemetry()
    app.state.addresses = Addresses(allow_private=settings.webhook_allow_private)
    problems.install(app)
    app.add_middleware(RequestMiddleware, telemetry=app.state.telemetry, hosts=Hosts.of(settings))
    app.state.routes = []
    for router in (*ROUTERS, operations.public):
        _check_locked(router)
        app.include_router(router)
        app.state.routes += router.routes
    openapi.install(app)
    return app


def _check_locked(router: APIRouter) -> None:
    for route in router.routes:
        assert isinstance(route, APIRoute)
        locked = any(isinstance(need.call, Require) for need in route.dependant.dependencies)
        if not locked and route.path not in PUBLIC:
            raise RuntimeError(f"{route.path} asks for no key; add a dependency on require(…)")


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state
        await run_in_threadpool(_open, state, settings)
        reconciler = Reconciler(settings, state.database, state.broker, state.key_use)
        sender = Sender(settings, state.database, state.addresses)
        scrubber = Scrubber(settings, state.database, lambda: state.telemetry.damaged("scrub"))
        reconciler.start()
        sender.start()
        scrubber.start()
        try:
            yield
        finally:
            await run_in_threadpool(scrubber.stop)
            await run_in_threadpool(sender.stop)
            await run_in_threadpool(reconciler.stop)
            state.broker.close()
            state.database.dispose()

    return lifespan


def _open(state: Any, settings: Settings) -> None:
    settings.scratch.mkdir(parents=True, exist_ok=True)
    scratch.sweep(settings.scratch)
    state.database = Database(settings.database)
    state.storage = open_storage(settings.storage)
    state.broker = Broker(settings.broker)
    state.key_use = KeyUse()
    state.callers = Callers()
    state.rates = Rates(settings)
    state.submissions = Semaphore(submission.AT_ONCE)
    with state.database.session_scope(read_only=True) as session:
        state.telemetry.begin(session)
    if settings.admin_key is not None:
        with state.database.session_scope() as session:
            install_admin_key(session, settings.admin_key.get_secret_value())
