"""What can be asked of a job that is there: to pause, to go on, to be tried again, to be cloned."""

from typing import Literal

from service.client_calls import Flow, Json, _fresh_key, _post


def pause_job(job_id: str) -> Flow[Json]:
    """Ask for a pause; returns the job, which may still be `pausing`."""
    return (yield from _post(f"/v1/jobs/{job_id}/pause"))


def resume_job(job_id: str) -> Flow[Json]:
    """Queue a paused job again, to go on from its checkpoint."""
    return (yield from _post(f"/v1/jobs/{job_id}/resume"))


def retry_job(job_id: str, *, start: Literal["checkpoint", "start"] = "checkpoint") -> Flow[Json]:
    """Queue a failed or cancelled job again; from the `start` what was saved of it is dropped."""
    return (yield from _post(f"/v1/jobs/{job_id}/retry", {"from": start}))


def clone_job(job_id: str, changes: Json | None = None, *, idempotency_key: str | None = None) -> Flow[Json]:
    """Queue a new job of the same spec, with `changes` of it as a JSON merge patch; returns the new job."""
    return (yield from _post(f"/v1/jobs/{job_id}/clone", changes or {}, key=idempotency_key or _fresh_key()))
