"""How uvicorn serves the API: one process, its connections guarded, nothing believed of proxies that nobody named."""

import gc
from typing import Any

import uvicorn

from service import logs
from service.app import create_app
from service.config import Settings
from service.connections import guarded

GRACE_SECONDS = 8
"""For requests under way when the API is told to stop; whoever started it may kill it after 10."""


def serve(settings: Settings) -> None:
    """Listen on the settings' host and port until a stop signal comes. Raises `SystemExit` when it cannot start."""
    app = create_app(settings)
    gc.collect()
    gc.freeze()  # half a million objects that live as long as the process: each look through them halts all requests
    uvicorn.run(app, **options(settings))


def options(settings: Settings) -> dict[str, Any]:
    """Arguments of `uvicorn.run` and `uvicorn.Config`.

    No `limit_concurrency`: it counts open connections, so that a crowd of half-open ones would shut everybody out.
    """
    return {
        "host": settings.host,
        "port": settings.port,
        "http": guarded(settings),
        "ws": "none",
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
        "log_config": logs.configuration(settings.log_level, settings.log_format),
        "server_header": False,
        # Followers of events would otherwise hold the process for ever; they, and uploads, go on at the next one.
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }
