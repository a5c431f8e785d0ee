"""What the client asks the API before it submits a job, as `service.client_calls` does about the rest."""

from service.client_calls import Flow, Json, _post


def estimate_job(spec: Json) -> Flow[Json]:
    """What a job would take: seconds, bytes of memory and disk, what comes out, and whether it fits; nothing is queued.

    Raises what `submit_job` would.
    """
    return (yield from _post("/v1/jobs:estimate", spec))
