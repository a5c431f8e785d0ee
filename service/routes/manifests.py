"""Models that are sent file by file: begun by a manifest, completed when every byte is here."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from service import audit
from service.auth import Principal
from service.config import Settings
from service.db import Database
from service.deps import DatabaseDep, SettingsDep, StorageDep, Writer, parse_json, remember, replay_or
from service.errors import BadRequest, Conflict, Invalid, NotFound
from service.intake import partial, uploads
from service.intake.limits import limits_of
from service.intake.manifest import Manifest, read_manifest
from service.intake.models import store
from service.intake.scratch import DiskFailed, disk_errors, upload_folder
from service.model_view import ModelView, find_model, show, show_uploading
from service.problems import responses
from service.quotas import check_room
from service.storage import Storage
from service.tables import Model, Upload

router = APIRouter(prefix="/v1/models", tags=["models"])


def begin(
    request: Request, principal: Principal, database: Database, settings: Settings, storage: Storage, body: bytes
) -> Response:
    """Answer a manifest with a model in the state `uploading`: a new one, or the one that it began before."""
    manifest = read_manifest(parse_json(body))
    expires_at = uploads.expiry(settings.upload_expiry_seconds)
    with database.session_scope(read_only=True) as session:
        model = uploads.unfinished(session, principal.tenant, manifest)
        rows = uploads.uploads_of(session, model.id) if model else []
        wanted = set() if model else {(file.sha256, file.size) for file in manifest.files}
        known = uploads.stored_content(session, principal.tenant, wanted)
    if model is not None:
        return _answer(request, principal, database, settings, body, model, rows, is_new=False)
    _check_disk(settings, manifest, known)
    model = uploads.new_model(principal.tenant, manifest)
    rows = uploads.new_uploads(model, manifest.files, expires_at)
    with _folder_for(settings.scratch, model) as folder:
        uploads.link_stored(storage, rows, known, folder)
        return _answer(request, principal, database, settings, body, model, rows, is_new=True)


def _check_disk(settings: Settings, manifest: Manifest, known: dict[uploads.Content, str]) -> None:
    """Raises what an archive of that size would; content that is stored already takes no room."""
    limits = limits_of(settings, "model")
    missing = sum(file.size for file in manifest.files if (file.sha256, file.size) not in known)
    if (missing if limits.by_disk else manifest.size) > limits.total:
        raise limits.refusal()


@contextmanager
def _folder_for(scratch: Path, model: Model) -> Iterator[Path]:
    """The folder of a new model's uploads; gone again unless a row was stored for it."""
    folder = partial.folder_of(scratch, model.id)
    with disk_errors():
        folder.mkdir(parents=True)
        try:
            yield folder
        except BaseException:
            partial.remove(scratch, model.id)
            raise


def _answer(
    request: Request,
    principal: Principal,
    database: Database,
    settings: Settings,
    body: bytes,
    model: Model,
    rows: list[Upload],
    *,
    is_new: bool,
) -> Response:
    sha256 = hashlib.sha256(body).hexdigest()
    headers = {"Location": f"{request.url.path.rstrip('/')}/{model.id}"}
    with database.session_scope() as session:
        replayed = replay_or(session, principal, request, sha256)
        if replayed is None:
            _keep(session, settings, model, rows, is_new=is_new)
            shown = show_uploading(settings.scratch, model, rows, request).model_dump(mode="json")
            remember(session, principal, request, sha256, 201, headers, shown)
    if replayed is None:
        return JSONResponse(shown, 201, headers)
    if is_new:
        partial.remove(settings.scratch, model.id)
    return replayed


def _keep(session: Session, settings: Settings, model: Model, rows: list[Upload], *, is_new: bool) -> None:
    if is_new:
        check_room(session, settings, model.tenant, model.size)
        session.add(model)
        session.flush()
        session.add_all(rows)
        session.flush()
    elif not uploads.touch_all(session, model.id, uploads.expiry(settings.upload_expiry_seconds)):
        raise Conflict("The upload that this manifest began has just ended; send it again.", code="UPLOAD_ENDED")
    else:
        audit.unchanged(session)


@router.post(
    "/{model_id}/complete",
    response_model=ModelView,
    responses=responses(400, 404, 409, 422, 423, 507),
    summary="Complete a model that was sent file by file",
)
def complete_model(
    model_id: str, principal: Writer, database: DatabaseDep, storage: StorageDep, settings: SettingsDep
) -> Any:
    """Verifies every digest, then checks the model as if it had come as an archive: it is `ready`, or `invalid`.

    May be repeated: a model that is ready is answered again, and the refusal of an invalid one, too. Where the disk
    failed (500 STORAGE_ERROR), all files are to be sent again first.
    """
    with database.session_scope(read_only=True) as session:
        model = find_model(session, principal.tenant, model_id)
    if model.state != "uploading":
        return _ended(model)
    with disk_errors(), partial.alone(settings.scratch, model_id):
        with database.session_scope(read_only=True) as session:
            model = find_model(session, principal.tenant, model_id)
            rows = uploads.uploads_of(session, model_id)
        if model.state == "uploading":
            uploads.check_whole(settings.scratch, rows)
            _complete_or_drop(database, storage, settings, model, rows)
            with database.session_scope(read_only=True) as session:
                model = find_model(session, principal.tenant, model_id)
        partial.remove(settings.scratch, model_id)
    return _ended(model)


def _ended(model: Model) -> ModelView:
    problem = model.facts.get("problem")
    if problem:
        kind = BadRequest if problem["status"] == BadRequest.status else Invalid
        raise kind(problem["detail"], code=problem["code"])
    return show(model)


def _complete_or_drop(
    database: Database, storage: Storage, settings: Settings, model: Model, rows: list[Upload]
) -> None:
    """Complete a model; where the disk fails, all that was sent is dropped.

    The system tells a file once that its bytes did not reach the disk: flushed again, it would seem to be kept.
    """
    try:
        _complete(database, storage, settings, model, rows)
    except DiskFailed:
        partial.remove(settings.scratch, model.id)
        raise


def _complete(database: Database, storage: Storage, settings: Settings, model: Model, rows: list[Upload]) -> None:
    """Check and store the model, or note why it is refused. Killed on the way, it can begin anew: nothing is moved."""
    with upload_folder(settings.scratch) as folder:
        try:
            checked = uploads.check_uploads(settings.scratch, rows, folder)
        except (BadRequest, Invalid) as error:
            with database.session_scope() as session:
                uploads.refuse(session, model.id, error)
            return
        storage.delete_prefix(model.prefix)  # what an attempt left that was killed
        values = store(storage, checked, model.id)
    with database.session_scope() as session:
        kept = uploads.finish(session, model.id, values)
    if not kept:
        storage.delete_prefix(model.prefix)
        raise NotFound("There is no such model.")
