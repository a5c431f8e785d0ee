"""Bytes of single files that jobs made."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from service.deps import Reader, SessionDep, StorageDep
from service.errors import NotFound
from service.problems import responses
from service.retention import check_kept
from service.storage import Storage, StorageMissing
from service.storage.serve import repr_digest, serve
from service.storage.tar import TarLayout, read_range
from service.storage.verified import missing
from service.tables import Artifact, Job

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

DOWNLOAD: dict[str, Any] = {
    "response_class": Response,
    "responses": {**responses(404, 409, 410, 416), 206: {"description": "the range asked for"}},
}
"""What every route that answers with stored bytes declares."""

FILE_DOWNLOAD: dict[str, Any] = DOWNLOAD | {
    "responses": {
        **DOWNLOAD["responses"],
        307: {
            "description": "fetch it from the object store at `Location`, within 15 minutes; where the service is set "
            "to presigned downloads, and only for requests without ranges and conditions"
        },
    }
}
"""What the routes that answer with one stored file declare."""

_PROXIED = frozenset({"range", "if-range", "if-none-match"})
"""Headers whose meaning rests on our ETag, which the object store does not know."""


@router.head(
    "/{artifact_id}/content",
    summary="Ask for an artifact's size and digest",
    **FILE_DOWNLOAD,
)
@router.get(
    "/{artifact_id}/content",
    summary="Download an artifact",
    **FILE_DOWNLOAD,
)
def get_content(
    principal: Reader, session: SessionDep, storage: StorageDep, artifact_id: str, request: Request
) -> Response:
    """`Range` and `If-Range` resume a download; the strong ETag is the sha256 of the bytes."""
    query = select(Artifact).where(Artifact.id == artifact_id, Artifact.tenant == principal.tenant)
    artifact = session.scalar(query)
    if artifact is None:
        raise NotFound("There is no such artifact.")
    check_kept(session.get(Job, artifact.job_id))
    return serve_file(request, storage, artifact.key, size=artifact.size, sha256=artifact.sha256)


def serve_file(request: Request, storage: Storage, key: str, *, size: int, sha256: str) -> Response:
    """One stored file, or where the object store has it. Raises `InternalError` when it is lost or damaged."""
    read = reader(request, storage, key)
    media_type, filename = "application/octet-stream", PurePosixPath(key).name
    if request.app.state.settings.presigned_downloads and request.method == "GET":
        url = storage.presigned_url(key, filename=filename, media_type=media_type)
        if url is not None and _PROXIED.isdisjoint(request.headers):
            headers = {"Location": url, "Cache-Control": "no-store", "Repr-Digest": repr_digest(sha256)}
            return Response(status_code=307, headers=headers)
    return serve(request, size=size, sha256=sha256, media_type=media_type, filename=filename, read=read)


def reader(request: Request, storage: Storage, key: str) -> Callable[[int, int], Iterator[bytes]]:
    """Reads ranges of a stored file. Raises `InternalError` when it is lost: now, not in the middle of an answer."""
    check_there(request, storage, [key])

    def read(start: int, length: int) -> Iterator[bytes]:
        with storage.open(key) as file:
            yield from read_range(file, start, length)

    return read


def check_there(request: Request, storage: Storage, keys: Iterable[str]) -> None:
    """Raises `InternalError` with the code ARTIFACT_MISSING when the storage has lost one of the files."""
    for key in keys:
        try:
            storage.size(key)
        except StorageMissing:
            request.app.state.telemetry.damaged("download")
            log.error("The storage has lost %s", key)
            raise missing() from None


def serve_tar(
    request: Request, storage: Storage, files: Mapping[str, tuple[int, str]], *, sha256: str, filename: str
) -> Response:
    """Files as one tar: `files` maps names in it to size and key, in its order; `sha256` is of the whole archive.

    Raises `InternalError` when a file is lost, or the archive is small and damaged.
    """
    check_there(request, storage, (key for _, key in files.values()))
    layout = TarLayout([(name, size) for name, (size, _) in files.items()])
    return serve(
        request,
        size=layout.size,
        sha256=sha256,
        media_type="application/x-tar",
        filename=filename,
        read=lambda start, length: layout.read(start, length, lambda name: storage.open(files[name][1])),
    )
