"""Bytes of single files that jobs made."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from service.deps import Reader, SessionDep, StorageDep
from service.errors import NotFound
from service.problems import responses
from service.storage import Storage
from service.storage.serve import serve
from service.storage.tar import TarLayout, read_range
from service.tables import Artifact

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

DOWNLOAD: dict[str, Any] = {
    "response_class": Response,
    "responses": {**responses(404, 409, 416), 206: {"description": "the range asked for"}},
}
"""What every route that answers with stored bytes declares."""


@router.head(
    "/{artifact_id}/content",
    summary="Ask for an artifact's size and digest",
    **DOWNLOAD,
)
@router.get(
    "/{artifact_id}/content",
    summary="Download an artifact",
    **DOWNLOAD,
)
def get_content(
    principal: Reader, session: SessionDep, storage: StorageDep, artifact_id: str, request: Request
) -> Response:
    """`Range` and `If-Range` resume a download; the strong ETag is the sha256 of the bytes."""
    query = select(Artifact).where(Artifact.id == artifact_id, Artifact.tenant == principal.tenant)
    artifact = session.scalar(query)
    if artifact is None:
        raise NotFound("There is no such artifact.")
    return serve(
        request,
        size=artifact.size,
        sha256=artifact.sha256,
        media_type="application/octet-stream",
        filename=PurePosixPath(artifact.path).name,
        read=reader(storage, artifact.key),
    )


def reader(storage: Storage, key: str) -> Callable[[int, int], Iterator[bytes]]:
    """Reads ranges of a stored file. Raises `StorageMissing` now, not in the middle of an answer."""
    storage.size(key)

    def read(start: int, length: int) -> Iterator[bytes]:
        with storage.open(key) as file:
            yield from read_range(file, start, length)

    return read


def serve_tar(
    request: Request, storage: Storage, files: Mapping[str, tuple[int, str]], *, sha256: str, filename: str
) -> Response:
    """Files as one tar: `files` maps names in it to size and key, in its order; `sha256` is of the whole archive.

    Raises `StorageMissing` now, not in the middle of the answer.
    """
    for _, key in files.values():
        storage.size(key)
    layout = TarLayout([(name, size) for name, (size, _) in files.items()])
    return serve(
        request,
        size=layout.size,
        sha256=sha256,
        media_type="application/x-tar",
        filename=filename,
        read=lambda start, length: layout.read(start, length, lambda name: storage.open(files[name][1])),
    )
