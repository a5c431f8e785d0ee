"""What the client asks of the service itself, and the files that need no unpacking."""

from pathlib import Path
from urllib.parse import quote

from service.client_calls import Call, Flow, Json, _get, _send
from service.client_downloads import _download
from service.client_files import Progress


def alive() -> Flow[Json]:
    """Whether the service answers at all; asks nothing of what it leans on."""
    return (yield from _get("/healthz"))


def prometheus_metrics() -> Flow[str]:
    """The counters of the service, in Prometheus' text format."""
    answer = yield from _send(Call("GET", "/metrics"))
    return answer.content.decode()


def download_model_file(model_id: str, path: str, target: Path, *, progress: Progress | None = None) -> Flow[Path]:
    """Download one file of a model to `target` and verify it; `path` is its name in the model."""
    return (yield from _download(f"/v1/models/{model_id}/files/{quote(path)}", target, progress))
