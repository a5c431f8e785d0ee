"""What the client says to the API, without the wire: each function is a generator that yields calls and gets answers.

`service.client` drives the same generators synchronously and asynchronously, so that there is one client, not two.
"""

import json
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from service import errors
from service.client_files import Body, Progress, multipart_body, split_files
from service.states import FINAL

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

RETRIES = 4
"""Tries after the first one, when the service cannot be reached or says that it is unavailable."""


class Unreachable(Exception):
    """The service did not answer: wrong address, stopped, or the connection broke again and again."""


@dataclass(frozen=True)
class Call:
    """One request. `sink` gets the status and headers of a 2xx answer and returns what takes its bytes."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    body: Body | None = None
    sink: Callable[[int, Mapping[str, str]], Callable[[bytes], object]] | None = None


@dataclass(frozen=True)
class Pause:
    """Wait this many seconds before going on."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Something slow on this machine, to be kept off an event loop."""

    run: Callable[[], None]


@dataclass(frozen=True)
class Together:
    """Flows that run side by side, `at_once` at a time, until all have ended or one has failed."""

    flows: "Sequence[Flow[None]]"
    at_once: int


@dataclass(frozen=True)
class Answer:
    """A 2xx or 304 answer; `content` is empty when a sink took it."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    def json(self) -> Json:
        """The content, which is a JSON object, parsed."""
        value: Json = json.loads(self.content)
        return value


Step: TypeAlias = Call | Pause | Work | Together
Flow: TypeAlias = Generator[Step, Answer, T]

ERRORS: dict[int, type[errors.SecateurError]] = {
    kind.status: kind for kind in errors.SecateurError.__subclasses__() if kind.status != errors.SecateurError.status
}


def error_from(status: int, content: bytes) -> errors.SecateurError:
    """The error that a problem document describes, of the same class as in the service."""
    try:
        problem = json.loads(content)
        assert isinstance(problem, dict)
    except (ValueError, AssertionError):
        problem = {}
    kind = ERRORS.get(status, errors.SecateurError)
    error = kind(
        problem.get("detail") or f"The service answered {status} without an explanation.",
        code=problem.get("code"),
        errors=tuple(errors.FieldError(e["pointer"], e["detail"]) for e in problem.get("errors", [])),
        extra={name: problem[name] for name in ("request_id", "retry_after") if problem.get(name)},
    )
    error.status = status
    return error


def _send(call: Call, retries: int = RETRIES) -> Flow[Answer]:
    """A call, tried again while the service is away, is asked too fast or still answers the first try of it.

    Each may be repeated safely.
    """
    for attempt in range(retries + 1):
        try:
            return (yield call)
        except (Unreachable, errors.Unavailable, errors.TooManyRequests, errors.Conflict) as error:
            if attempt == retries or not _may_pass(error):
                raise
            yield Pause(max(0.25 * 2**attempt, _asked_to_wait(error)))
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    told = isinstance(error, errors.TooManyRequests | errors.Conflict)
    return not told or getattr(error, "code", None) in ("RATE_LIMITED", "IDEMPOTENCY_IN_FLIGHT")


def _asked_to_wait(error: Exception) -> float:
    return float(error.extra.get("retry_after", 0)) if isinstance(error, errors.TooManyRequests) else 0.0


def _get(path: str, **params: str | None) -> Flow[Json]:
    given = {name: value for name, value in params.items() if value is not None}
    answer = yield from _send(Call("GET", path, params=given))
    return answer.json()


def _post(path: str, payload: Any = None, *, key: str | None = None, **params: str) -> Flow[Json]:
    headers = {"Idempotency-Key": key} if key else {}
    answer = yield from _send(Call("POST", path, params=params, headers=headers, json=payload))
    return answer.json()


def _patch(path: str, payload: Json) -> Flow[Json]:
    answer = yield from _send(Call("PATCH", path, json=payload))
    return answer.json()


def _delete(path: str) -> Flow[None]:
    yield from _send(Call("DELETE", path))


def _pages(path: str, limit: int | None, params: Mapping[str, str | None]) -> Flow[list[Json]]:
    """Rows of a list, newest first, page after page until `limit` (None: all)."""
    rows: list[Json] = []
    cursor: str | None = None
    while limit is None or len(rows) < limit:
        size = 100 if limit is None else min(100, limit - len(rows))
        page = yield from _get(path, **params, limit=str(size), cursor=cursor)
        rows += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return rows


def _fresh_key() -> str:
    return uuid.uuid4().hex


def _upload(path: str, params: Mapping[str, str], body: Body, key: str | None) -> Flow[Json]:
    headers = {"Idempotency-Key": key or _fresh_key()}
    answer = yield from _send(Call("POST", path, params=params, headers=headers, body=body))
    return answer.json()


# Models


def list_models(*, limit: int | None = 20) -> Flow[list[Json]]:
    """Models, newest first."""
    return (yield from _pages("/v1/models", limit, {}))


def show_model(model_id: str) -> Flow[Json]:
    """One model."""
    return (yield from _get(f"/v1/models/{model_id}"))


def inspect_model(model_id: str, spec: Json | None = None, *, idempotency_key: str | None = None) -> Flow[Json]:
    """Queue an inspection of a model, as `spec` says or by its defaults; returns its job as queued."""
    return (yield from _post(f"/v1/models/{model_id}/inspections", spec or {}, key=idempotency_key or _fresh_key()))


def delete_model(model_id: str) -> Flow[None]:
    """Delete a model; `Conflict` while a job needs it."""
    yield from _delete(f"/v1/models/{model_id}")


# Data sets


def push_dataset(
    folder: Path,
    task: str,
    name: str | None = None,
    *,
    idempotency_key: str | None = None,
    progress: Progress | None = None,
) -> Flow[Json]:
    """Upload `train`, `validation`, `test` and `calibration` (.jsonl or .csv) of a folder, those that exist."""
    body = multipart_body(split_files(folder), progress)
    params = {"name": name or folder.absolute().name, "task": task}
    return (yield from _upload("/v1/datasets", params, body, idempotency_key))


def list_datasets(*, limit: int | None = 20) -> Flow[list[Json]]:
    """Data sets, newest first."""
    return (yield from _pages("/v1/datasets", limit, {}))


def show_dataset(dataset_id: str) -> Flow[Json]:
    """One data set."""
    return (yield from _get(f"/v1/datasets/{dataset_id}"))


def delete_dataset(dataset_id: str) -> Flow[None]:
    """Delete a data set; `Conflict` while a job needs it."""
    yield from _delete(f"/v1/datasets/{dataset_id}")


# Jobs


def submit_job(spec: Json, *, idempotency_key: str | None = None) -> Flow[Json]:
    """Queue a job; returns it as queued."""
    return (yield from _post("/v1/jobs", spec, key=idempotency_key or _fresh_key()))


def validate_job(spec: Json) -> Flow[Json]:
    """Check a job without storing it; returns the resolved configuration."""
    return (yield from _post("/v1/jobs", spec, validate_only="true"))


def list_jobs(
    *,
    kind: str | None = None,
    status: str | None = None,
    model_id: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    limit: int | None = 20,
) -> Flow[list[Json]]:
    """Jobs, newest first."""
    params = {"kind": kind, "status": status, "model_id": model_id, "name": name}
    params |= {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    return (yield from _pages("/v1/jobs", limit, params))


def show_job(job_id: str, *, wait: int = 0) -> Flow[Json]:
    """One job; `wait` (seconds, at most 60) holds the answer until its status changes."""
    return (yield from _show_job(job_id, wait, RETRIES))


def _show_job(job_id: str, wait: int, retries: int) -> Flow[Json]:
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    answer = yield from _send(Call("GET", f"/v1/jobs/{job_id}", headers=headers), retries)
    return answer.json()


def watch_job(job_id: str, on_change: Callable[[Json], None] | None = None, *, patience: int = 7) -> Flow[Json]:
    """Follow a job until it has ended; returns it as it ended.

    `on_change` gets every new state of it, progress included. A service that is away is asked again `patience`
    times, each after twice the pause (7: about half a minute).
    """
    seen: Json = {}
    while True:
        job = yield from _show_job(job_id, 1, patience)
        if job != seen and on_change is not None:
            on_change(job)
        if job["status"] in FINAL:
            return job
        # Also bounds the rate against a server that does not hold the answer.
        yield Pause(0.2)
        seen = job


def cancel_job(job_id: str) -> Flow[Json]:
    """Ask for a cancel; returns the job, which may still be `cancelling`."""
    return (yield from _post(f"/v1/jobs/{job_id}/cancel"))


def delete_job(job_id: str) -> Flow[None]:
    """Delete a finished job."""
    yield from _delete(f"/v1/jobs/{job_id}")


def job_events(job_id: str, *, after: str | None = None) -> Flow[list[Json]]:
    """What happened in a job, oldest first; `after` is the id of the last event already known."""
    rows: list[Json] = []
    while True:
        page = yield from _get(f"/v1/jobs/{job_id}/events", after=after, limit="100")
        rows += page["data"]
        if not page.get("next_cursor") or not page["data"]:
            return rows
        after = page["data"][-1]["id"]


def job_metrics(job_id: str, *, name: str | None = None, resolution: int | None = None) -> Flow[list[Json]]:
    """Series of a job: `{"name", "points": [{"step", "time", "value"}]}`."""
    page = yield from _get(
        f"/v1/jobs/{job_id}/metrics", name=name, resolution=None if resolution is None else str(resolution)
    )
    rows: list[Json] = page["data"]
    return rows


def job_artifacts(job_id: str) -> Flow[list[Json]]:
    """Files that a job published."""
    page = yield from _get(f"/v1/jobs/{job_id}/artifacts")
    rows: list[Json] = page["data"]
    return rows


def job_report(job_id: str, *, as_json: bool = False) -> Flow[bytes]:
    """The report of a job: a self-contained HTML page, or JSON."""
    accept = "application/json" if as_json else "text/html"
    answer = yield from _send(Call("GET", f"/v1/jobs/{job_id}/report", headers={"Accept": accept}))
    return answer.content


# Operations


def capabilities() -> Flow[Json]:
    """Families, structures, criteria, exports, limits and workers of the service."""
    return (yield from _get("/v1/capabilities"))


def ready() -> Flow[Json]:
    """What the service leans on; raises `Unavailable` naming what is missing."""
    answer = yield Call("GET", "/readyz")
    return answer.json()


def create_key(
    name: str, scopes: list[str], *, expires_at: str | None = None, expires_in: int | None = None
) -> Flow[Json]:
    """Make an API key of the caller's tenant; the only answer that shows it. Needs the scope `admin`.

    `expires_in` is in seconds. Raises `Conflict` (IDEMPOTENCY_SECRET_NOT_KEPT) when it was made, but the answer lost.
    """
    payload: Json = {"name": name, "scopes": scopes}
    payload |= {"expires_at": expires_at} if expires_at is not None else {}
    payload |= {"expires_in": expires_in} if expires_in is not None else {}
    return (yield from _post("/v1/keys", payload, key=_fresh_key()))


def list_keys(*, limit: int | None = 20) -> Flow[list[Json]]:
    """API keys of the caller's tenant, without their secrets."""
    return (yield from _pages("/v1/keys", limit, {}))


def delete_key(key_id: str) -> Flow[None]:
    """Revoke an API key."""
    yield from _delete(f"/v1/keys/{key_id}")
