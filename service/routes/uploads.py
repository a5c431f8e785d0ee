"""Uploads that can be resumed: the tus protocol, version 1.0.0, for the files that a manifest names.

Extensions: creation (of files that the manifest names), checksum, expiration, termination.
"""

import base64
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime
from email.utils import format_datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.auth import Principal
from service.config import Settings
from service.db import Database, on_commit
from service.deps import DatabaseDep, Reader, SessionDep, SettingsDep, Writer
from service.errors import (
    BadRequest,
    Conflict,
    Invalid,
    NotFound,
    PreconditionFailed,
    SecateurError,
    UnsupportedMediaType,
)
from service.ids import new_id
from service.intake import partial, uploads
from service.intake.body import Pipe, receive
from service.intake.limits import limits_of
from service.intake.names import member_name
from service.intake.partial import ALGORITHMS, Checksum
from service.intake.scratch import disk_errors
from service.job_view import base_url
from service.model_view import find_model, upload_url
from service.problems import responses
from service.tables import Upload

VERSION = "1.0.0"
MEDIA_TYPE = "application/offset+octet-stream"
_OURS = {"Tus-Resumable": VERSION}
_MAX_DIGITS = 18


class TusRoute(APIRoute):
    """A route whose every answer names the protocol, and that refuses other versions of it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the protocol's header around it."""
        handle = super().get_route_handler()

        async def speak(request: Request) -> Response:
            try:
                answer = await handle(request)
            except SecateurError as error:
                error.headers |= _OURS
                raise
            answer.headers.update(_OURS)
            return answer

        return speak


router = APIRouter(tags=["uploads"], route_class=TusRoute)


@router.options("/v1/uploads", status_code=204, responses=responses(), summary="Ask which parts of tus are spoken")
def get_protocol(principal: Reader, settings: SettingsDep) -> Response:
    """Version, extensions, checksums and the largest file of the tus protocol."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": "creation,checksum,expiration,termination",
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Tus-Max-Size": str(limits_of(settings, "model").total),
    }
    return Response(status_code=204, headers=headers)


@router.options(
    "/v1/uploads/{upload_id}",
    status_code=204,
    responses=responses(404),
    summary="Ask the same of one upload",
)
def get_protocol_of(upload_id: str, principal: Reader, session: SessionDep, settings: SettingsDep) -> Response:
    """The same, of the address of one upload."""
    find_upload(session, principal.tenant, upload_id)
    return get_protocol(principal, settings)


@router.post(
    "/v1/models/{model_id}/uploads",
    status_code=201,
    responses=responses(400, 404, 412, 422),
    summary="Ask for the address of a file that the manifest names",
)
def create_upload(model_id: str, principal: Writer, session: SessionDep, request: Request) -> Response:
    """The creation of tus, for its clients: `Upload-Metadata` has the file's `path` (or `filename`), and its upload,
    which the manifest made, is the answer's `Location`."""
    find_model(session, principal.tenant, model_id)
    _check_version(request)
    path = _path_of(request.headers.get("upload-metadata", ""))
    size = _number(request, "Upload-Length")
    upload = session.scalar(select(Upload).where(Upload.model_id == model_id, Upload.path == path))
    if upload is None or upload.size != size:
        raise Invalid("The model's manifest names no file of this path and size.", code="UPLOAD_UNKNOWN")
    return Response(status_code=201, headers={"Location": upload_url(base_url(request), upload)})


@router.head("/v1/uploads/{upload_id}", responses=responses(404, 412), summary="Ask how much of a file is here")
def get_offset(
    upload_id: str, principal: Reader, session: SessionDep, settings: SettingsDep, request: Request
) -> Response:
    """`Upload-Offset` is the length of what is on the disk: go on from there."""
    upload = find_upload(session, principal.tenant, upload_id)
    _check_version(request)
    headers = {
        "Upload-Offset": str(partial.offset(settings.scratch, upload.model_id, upload.id)),
        "Upload-Length": str(upload.size),
        "Upload-Metadata": f"path {base64.b64encode(upload.path.encode()).decode()}",
        "Upload-Expires": _date(upload.expires_at),
        "Cache-Control": "no-store",
    }
    return Response(status_code=200, headers=headers)


_CHUNK = {
    "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    "parameters": [
        {"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string"}}
        for name, required, text in (
            ("Upload-Offset", True, "where the chunk begins: what HEAD says"),
            ("Upload-Checksum", False, "sha256 or sha1, a space, and the chunk's digest in base64"),
            ("Tus-Resumable", False, VERSION),
        )
    ],
}


@router.patch(
    "/v1/uploads/{upload_id}",
    status_code=204,
    responses=responses(400, 404, 409, 412, 413, 415, 423, 460, 507),
    summary="Send the next bytes of a file",
    openapi_extra=_CHUNK,
)
async def append_chunk(
    upload_id: str, request: Request, principal: Writer, database: DatabaseDep, settings: SettingsDep
) -> Response:
    """Writes the chunk behind what is here; 409 for another offset, 423 while another request writes.

    With `Upload-Checksum` a chunk counts whole or not at all; without, as far as it came when the connection breaks.
    """
    upload = await run_in_threadpool(_find, database, principal, upload_id)
    _check_version(request)
    if request.headers.get("content-type") != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the chunk as {MEDIA_TYPE}.")
    offset = _number(request, "Upload-Offset")
    checksum = _checksum(request.headers.get("upload-checksum"))
    limits = limits_of(settings, "chunk")
    limits = replace(limits, total=max(0, upload.size - offset), by_disk=False)

    def write(pipe: Pipe) -> tuple[int, datetime]:
        with disk_errors(), partial.writing(settings.scratch, upload.model_id, upload.id) as file:
            if file.offset != offset:
                detail = "The chunk begins elsewhere than what is here ends; HEAD says where."
                raise Conflict(detail, code="OFFSET_MISMATCH", headers={"Upload-Offset": str(file.offset)})
            try:
                file.append(pipe, checksum, limits.check_disk)
            finally:
                expires_at = _touch(database, settings, upload.id)
            return file.offset, expires_at

    reached, expires_at = await receive(request, limits, write, hashed=False)
    return Response(status_code=204, headers={"Upload-Offset": str(reached), "Upload-Expires": _date(expires_at)})


@router.delete(
    "/v1/uploads/{upload_id}",
    status_code=204,
    responses=responses(404, 412, 423),
    summary="Drop what was sent of a file",
)
def terminate_upload(
    upload_id: str, principal: Writer, session: SessionDep, settings: SettingsDep, request: Request
) -> Response:
    """Frees the bytes; the address is gone, and the model shows a new one for the file."""
    upload = find_upload(session, principal.tenant, upload_id, for_update=True)
    _check_version(request)
    with partial.writing(settings.scratch, upload.model_id, upload.id):
        session.delete(upload)
        session.flush()
        session.add(_anew(upload))
        session.flush()
        path = partial.folder_of(settings.scratch, upload.model_id) / upload.id
        on_commit(session, lambda: path.unlink(missing_ok=True))
    return Response(status_code=204)


def _anew(upload: Upload) -> Upload:
    return Upload(
        id=new_id("upl"),
        model_id=upload.model_id,
        tenant=upload.tenant,
        position=upload.position,
        path=upload.path,
        size=upload.size,
        sha256=upload.sha256,
        expires_at=upload.expires_at,
    )


def find_upload(session: Session, tenant: str, upload_id: str, *, for_update: bool = False) -> Upload:
    """A tenant's upload. Raises `NotFound`, the same for a foreign id and an unknown one."""
    query = select(Upload).where(Upload.id == upload_id, Upload.tenant == tenant)
    upload = session.scalar(query.with_for_update() if for_update else query)
    if upload is None:
        raise NotFound("There is no such upload.")
    return upload


def _find(database: Database, principal: Principal, upload_id: str) -> Upload:
    with database.session_scope(read_only=True) as session:
        return find_upload(session, principal.tenant, upload_id)


def _touch(database: Database, settings: Settings, upload_id: str) -> datetime:
    expires_at = uploads.expiry(settings.upload_expiry_seconds)
    with database.session_scope() as session:
        if not uploads.touch(session, upload_id, expires_at):
            raise NotFound("There is no such upload.")
    return expires_at


def _check_version(request: Request) -> None:
    if request.headers.get("tus-resumable", VERSION) != VERSION:
        raise PreconditionFailed(f"Only tus {VERSION} is spoken here.", headers={"Tus-Version": VERSION})


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequest(f"{name} is a number of bytes.", code="HEADER_INVALID")
    return int(text)


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, encoded = header.partition(" ")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except ValueError:
        digest = b""
    if algorithm not in ALGORITHMS or not digest:
        detail = f"Upload-Checksum is one of {' and '.join(ALGORITHMS)}, a space, and a digest in base64."
        raise BadRequest(detail, code="CHECKSUM_UNSUPPORTED")
    return Checksum(algorithm, digest)


def _path_of(metadata: str) -> str:
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    try:
        path = base64.b64decode(pairs.get("path") or pairs.get("filename") or "", validate=True).decode()
    except ValueError as error:
        raise BadRequest("Upload-Metadata has keys and values in base64.", code="HEADER_INVALID") from error
    return member_name(path)


def _date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)
