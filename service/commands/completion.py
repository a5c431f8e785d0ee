"""Ids of what the service holds, for the shell's completion: quickly, or nothing at all."""

import contextlib
from collections.abc import Callable
from typing import Annotated

import httpx
import typer

from service.commands.connect import address
from service.config import get_settings

SECONDS = 0.7
"""Whoever presses the tab key does not wait longer."""

_NEWEST = 100

Completion = Callable[[str], list[tuple[str, str]]]


def ids_of(resource: str) -> Completion:
    """Completes an id from the newest of `/v1/{resource}`, each with its name and state."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        with contextlib.suppress(Exception):  # no service, no key, another answer: nothing to offer
            url, key = address(get_settings())
            answer = httpx.get(
                f"{url}/v1/{resource}",
                params={"limit": _NEWEST},
                headers={"Authorization": f"Bearer {key}"},
                timeout=SECONDS,
                trust_env=False,
            )
            rows = answer.raise_for_status().json()["data"]
            return [(row["id"], _about(row)) for row in rows if row["id"].startswith(incomplete)]
        return []

    return complete


def _about(row: dict[str, object]) -> str:
    known = (row.get("name") or row.get("url"), row.get("status") or row.get("state"))
    return " ".join(str(part) for part in known if part)


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, job_…", autocompletion=ids_of("jobs"))]
ModelId = Annotated[
    str, typer.Argument(metavar="MODEL", help="Id of the model, mdl_…", autocompletion=ids_of("models"))
]
DatasetId = Annotated[
    str, typer.Argument(metavar="DATASET", help="Id of the data set, ds_…", autocompletion=ids_of("datasets"))
]
EndpointId = Annotated[
    str,
    typer.Argument(
        metavar="ENDPOINT", help="Id of the webhook endpoint, whe_…", autocompletion=ids_of("webhook_endpoints")
    ),
]
