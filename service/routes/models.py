"""Models: uploaded as archives or by manifest, listed, shown, downloaded by file or whole, deleted."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.db import on_commit
from service.deps import DatabaseDep, Reader, SessionDep, SettingsDep, StorageDep, Writer, read_body
from service.errors import Conflict, Invalid, NotFound
from service.intake import fields, partial, uploads
from service.intake.archive import MEDIA_TYPES, check_media_type
from service.intake.body import Pipe, check_digest, receive, wanted_digest
from service.intake.limits import Limits, limits_of
from service.intake.manifest import Manifest
from service.intake.models import Checked, publish, read_model
from service.intake.multipart import Multipart
from service.intake.scratch import upload_folder
from service.model_view import ModelView, find_model, show, show_whole
from service.openapi import schema_of
from service.paging import Cursor, Limit, newest_first
from service.problems import responses
from service.quotas import within_quota
from service.retention import check_kept
from service.routes.artifacts import DOWNLOAD, FILE_DOWNLOAD, serve_file, serve_tar
from service.routes.creation import create, remove_bytes
from service.routes.manifests import begin
from service.schemas import Page
from service.states import FINAL
from service.tables import Job, Model, utc_now

router = APIRouter(prefix="/v1/models", tags=["models"])


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(MEDIA_TYPES)},
            "application/json": {"schema": schema_of(Manifest)},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "the archive"},
                        "name": {"type": "string", "minLength": 1, "maxLength": 200},
                        "metadata": {"type": "string", "description": "a JSON object of at most 16 short strings"},
                    },
                }
            },
        },
    }
}


@router.post(
    "",
    status_code=201,
    response_model=ModelView,
    responses=responses(400, 409, 413, 415, 422, 507),
    summary="Upload a model as an archive, or begin to upload it file by file",
    openapi_extra=_BODY,
)
async def upload_model(
    request: Request,
    principal: Writer,
    database: DatabaseDep,
    settings: SettingsDep,
    storage: StorageDep,
    name: Annotated[str | None, Query(description="default: model", max_length=200)] = None,
) -> Response:
    """A zip or a tar (plain, gzip or zstd) of a Hugging Face directory, raw or as the part `file` of a form.

    The body is unpacked and hashed as it arrives. A refused upload leaves nothing behind.

    Or a manifest as JSON: the answer's `uploads` tell, for each file, how much of it is here (`present`: all, as other
    models hold it already) and the address that takes the rest by the tus protocol; then complete the model. The
    manifest of a model that is still uploading goes on with it.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json":
        manifest = await read_body(request)
        return await run_in_threadpool(begin, request, principal, database, settings, storage, manifest)
    is_form = media_type == "multipart/form-data"
    if not is_form:
        check_media_type(media_type)
    wanted = wanted_digest(request.headers.get("repr-digest"))
    limits = limits_of(settings, "model")
    limits = await run_in_threadpool(within_quota, database, settings, principal.tenant, limits)
    given = {} if name is None else {"name": fields.name(name)}

    def store(pipe: Pipe) -> Response:
        with upload_folder(settings.scratch) as folder:
            if is_form:
                upload = _read_form(Multipart(pipe, content_type), folder, limits, given)
            else:
                upload = _Upload(read_model(pipe, folder, limits), "", given)
            check_digest(pipe, wanted)
            row = publish(
                storage,
                upload.checked,
                tenant=principal.tenant,
                name=upload.fields.get("name", "model"),
                metadata=fields.metadata(upload.fields.get("metadata", "{}")),
            )
            return create(database, settings, storage, principal, request, upload.sha256 or pipe.sha256(), row, show)

    return await receive(request, limits, store)


@dataclass(frozen=True)
class _Upload:
    """What a body held; `sha256` is of a form's parts, empty for a raw body."""

    checked: Checked
    sha256: str
    fields: dict[str, str]


def _read_form(form: Multipart, folder: Path, limits: Limits, given: dict[str, str]) -> _Upload:
    checked = None
    found = dict(given)
    for part in form:
        if part.name == "file":
            checked = read_model(part, folder, limits)
        elif part.name == "name":
            found["name"] = fields.name(part.text())
        elif part.name == "metadata":
            found["metadata"] = part.text()
        else:
            raise fields.unknown_part("file, name and metadata")
    if checked is None:
        raise Invalid("The form has no part named file.", code="FILE_MISSING")
    return _Upload(checked, form.sha256(), found)


@router.get("", response_model=Page[ModelView], responses=responses(422), summary="List models, newest first")
def list_models(principal: Reader, session: SessionDep, limit: Limit = 20, cursor: Cursor = None) -> Page[ModelView]:
    """The tenant's models."""
    query = select(Model).where(Model.tenant == principal.tenant, Model.deleted_at.is_(None))
    rows, following = newest_first(session, query, Model.id, limit, cursor)
    return Page[ModelView](data=[show(row) for row in rows], next_cursor=following)


@router.get("/{model_id}", response_model=ModelView, responses=responses(404), summary="Show a model")
def get_model(
    model_id: str, principal: Reader, session: SessionDep, settings: SettingsDep, request: Request
) -> ModelView:
    """One model; while it is uploading, with what is still to be sent of its files."""
    return show_whole(session, settings.scratch, find_model(session, principal.tenant, model_id), request)


@router.delete("/{model_id}", status_code=204, responses=responses(404, 409), summary="Delete a model")
def delete_model(
    model_id: str, principal: Writer, session: SessionDep, storage: StorageDep, settings: SettingsDep
) -> None:
    """Deletes a model that no unfinished job needs. A model that a job made keeps its bytes as the job's artifacts.

    One that is still uploading goes with all that was sent of it.
    """
    model = find_model(session, principal.tenant, model_id, for_update=True)
    needed = select(Job.id).where(Job.model_id == model_id, Job.status.not_in(FINAL)).limit(1)
    if session.scalar(needed) is not None:
        raise Conflict("A job that has not finished needs this model; cancel it first.", code="MODEL_IN_USE")
    model.deleted_at = utc_now()
    uploads.forget(session, model_id)
    on_commit(session, functools.partial(partial.remove, settings.scratch, model_id))
    if model.job_id is None:
        on_commit(session, functools.partial(remove_bytes, storage, model.prefix))


def _check_kept(session: Session, model: Model) -> None:
    if model.state == "expired":
        check_kept(session.get(Job, model.job_id))


@router.head("/{model_id}/files/{path:path}", summary="Ask for a file's size and digest", **FILE_DOWNLOAD)
@router.get("/{model_id}/files/{path:path}", summary="Download one file of a model", **FILE_DOWNLOAD)
def get_file(
    model_id: str, path: str, request: Request, principal: Reader, session: SessionDep, storage: StorageDep
) -> Response:
    """`Range` and `If-Range` resume a download; the strong ETag is the sha256 of the bytes."""
    model = find_model(session, principal.tenant, model_id)
    file = next((file for file in model.files if file["path"] == path), None)
    if file is None:
        raise NotFound("The model has no such file.")
    _check_kept(session, model)
    key = f"{model.prefix}/{file['path']}"
    return serve_file(request, storage, key, size=file["size"], sha256=file["sha256"])


@router.head("/{model_id}/archive", summary="Ask for an archive's size and digest", **DOWNLOAD)
@router.get("/{model_id}/archive", summary="Download a model as a tar archive", **DOWNLOAD)
def get_archive(
    model_id: str, request: Request, principal: Reader, session: SessionDep, storage: StorageDep
) -> Response:
    """All files as one tar; `Range` and `If-Range` resume a download, the strong ETag is the sha256 of the archive."""
    model = find_model(session, principal.tenant, model_id)
    _check_kept(session, model)
    if model.state != "ready":
        raise Conflict(f"The model is {model.state}; only a ready one has an archive.", code="MODEL_NOT_READY")
    files = {file["path"]: (file["size"], f"{model.prefix}/{file['path']}") for file in model.files}
    return serve_tar(request, storage, files, sha256=model.archive_sha256, filename=f"{model.id}.tar")
