"""How a model gets to the service: a small one as one archive, others file by file in chunks that can be repeated."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from service import errors
from service.client_calls import Call, Flow, Json, Pause, Together, Unreachable, Work, _fresh_key, _get, _send, _upload
from service.client_files import Progress, archive_body, chunk_body, model_files

CHUNK = 8 << 20
"""Bytes of one request, and what a broken connection can cost at most."""

AT_ONCE = 4
"""Files that are sent side by side."""

PATIENCE = 8
"""Failures of one file in a row that are borne, over half a minute."""

_LONGEST_PAUSE = 10.0
_PASSING = (Unreachable, errors.Unavailable, errors.Conflict, errors.Locked, errors.ChecksumMismatch)


class _Sending:
    """The files of a model on their way: what they hash to, how far each has come."""

    def __init__(self, paths: Mapping[str, Path], progress: Progress | None) -> None:
        self.paths = paths
        self.sizes = {name: path.stat().st_size for name, path in paths.items()}
        self.total = sum(self.sizes.values())
        self._progress = progress
        self._digests: dict[str, str] = {}
        self._here: dict[str, int] = {}
        self._lock = threading.Lock()

    def hash(self) -> None:
        """Read every file once."""
        for name, path in self.paths.items():
            with path.open("rb") as file:
                self._digests[name] = hashlib.file_digest(file, "sha256").hexdigest()

    def manifest(self, name: str) -> Json:
        """What the service is told first."""
        files = [{"path": path, "size": self.sizes[path], "sha256": digest} for path, digest in self._digests.items()]
        return {"name": name, "files": files}

    def reached(self, name: str, offset: int) -> None:
        """The service holds so much of a file."""
        with self._lock:
            self._here[name] = offset
            if self._progress is not None:
                self._progress(sum(self._here.values()), self.total)


def push_model(
    folder: Path,
    name: str | None = None,
    *,
    archive: bool | None = None,
    idempotency_key: str | None = None,
    progress: Progress | None = None,
) -> Flow[Json]:
    """Upload a Hugging Face directory; returns the ready model.

    With `archive` as one tar that is built while it is sent, else file by file: what the service stores already is left
    out, and after a broken connection a file goes on where it stopped, also when the same folder is pushed again later.
    By default a model that fits in one chunk is an archive. `progress` is called by one thread at a time.
    """
    sending = _Sending(model_files(folder), progress)
    title = name or folder.absolute().name
    if archive or (archive is None and sending.total <= CHUNK):
        body = archive_body(sending.paths, progress)
        return (yield from _upload("/v1/models", {"name": title}, body, idempotency_key))
    yield Work(sending.hash)
    headers = {"Idempotency-Key": idempotency_key or _fresh_key()}
    begun = yield from _send(Call("POST", "/v1/models", headers=headers, json=sending.manifest(title)), PATIENCE)
    model = begun.json()
    by_path = zip(sending.paths, model["uploads"], strict=True)
    yield Together([_send_file(sending, path, upload) for path, upload in by_path], AT_ONCE)
    return (yield from _complete(model["id"]))


def _send_file(sending: _Sending, name: str, upload: Json) -> Flow[None]:
    """Chunk after chunk; after a failure, from where the service says that the file ends."""
    url = f"/v1/uploads/{upload['upload_url'].rpartition('/')[2]}"
    size, offset, failures = sending.sizes[name], int(upload["offset"]), 0
    sending.reached(name, offset)
    while offset < size:
        try:
            if failures:
                offset = yield from _offset(url)
            if offset < size:
                body = chunk_body(sending.paths[name], offset, min(CHUNK, size - offset))
                answer = yield Call("PATCH", url, body=body)
                offset, failures = int(answer.headers["Upload-Offset"]), 0
        except errors.NotFound:  # completed or dropped meanwhile: which of the two, the completion tells
            return
        except (errors.SecateurError, Unreachable) as error:
            failures += 1
            if not _passes(error) or failures > PATIENCE:
                raise
            yield Pause(min(_LONGEST_PAUSE, 0.25 * 2 ** (failures - 1)))
        sending.reached(name, offset)


def _passes(error: errors.SecateurError | Unreachable) -> bool:
    """Whether it may go better next time."""
    return isinstance(error, _PASSING) or getattr(error, "code", None) == "BODY_INCOMPLETE"


def _offset(url: str) -> Flow[int]:
    answer = yield Call("HEAD", url, headers={"Tus-Resumable": "1.0.0"})
    return int(answer.headers["Upload-Offset"])


def _complete(model_id: str) -> Flow[Json]:
    """Ask for the checks; they go on when the connection breaks, and whoever asks meanwhile is told to wait."""
    while True:
        try:
            return (yield from _send(Call("POST", f"/v1/models/{model_id}/complete"), PATIENCE)).json()
        except errors.Locked:
            yield Pause(1.0)


def model_lineage(model_id: str) -> Flow[Json]:
    """The ancestors and descendants of a model: `nodes`, parents before their children, and `edges` between them."""
    return (yield from _get(f"/v1/models/{model_id}/lineage"))
