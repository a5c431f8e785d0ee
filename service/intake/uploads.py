"""Models whose files are sent one by one: from the manifest to a ready model, or to one that is refused or expired."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.db import Database, rows_changed
from service.errors import Conflict, Invalid, Locked, SecateurError
from service.ids import new_id
from service.intake import orphans, partial
from service.intake.manifest import Manifest, ManifestFile
from service.intake.models import POLICY, Checked, check_model
from service.intake.sources import pieces
from service.intake.unpacking import Stored, split_head
from service.storage import Storage, StorageMissing
from service.storage.local import link_or_copy
from service.tables import Model, Upload, utc_now

log = logging.getLogger(__name__)

_UNKNOWN_SIZES: dict[str, Any] = {
    "layers": None,
    "hidden_size": None,
    "attention_heads": [],
    "ffn_width": [],
    "vocabulary": None,
}
_UNKNOWN: dict[str, Any] = {
    "family": "",
    "architecture": "",
    "task": None,
    "parameters": 0,
    "dtype": "",
    "files": [],
    "structure": _UNKNOWN_SIZES,
    "archive_size": 0,
    "archive_sha256": "",
}
"""Columns of a model of which nothing has been read yet."""

_OWN_NAMES = 2
"""Of a file that was sent: its upload's, and the one while it is checked; one that was stored already has another."""

Content = tuple[str, int]
"""SHA-256 and size: what makes two files the same."""


def expiry(seconds: float) -> datetime:
    """When an upload is dropped whose last byte came now."""
    return utc_now() + timedelta(seconds=seconds)


def new_model(tenant: str, manifest: Manifest) -> Model:
    """A row for a model whose files are still to come."""
    model_id = new_id("mdl")
    return Model(
        id=model_id,
        tenant=tenant,
        name=manifest.name,
        state="uploading",
        size=manifest.size,
        facts={},
        prefix=f"models/{model_id}",
        metadata_=dict(manifest.metadata),
        **_UNKNOWN,
    )


def new_uploads(model: Model, files: Iterable[ManifestFile], expires_at: datetime) -> list[Upload]:
    """A row for each file of a manifest."""
    return [
        Upload(
            id=new_id("upl"),
            model_id=model.id,
            tenant=model.tenant,
            position=position,
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            expires_at=expires_at,
        )
        for position, file in enumerate(files)
    ]


def uploads_of(session: Session, model_id: str) -> list[Upload]:
    """A model's uploads in the order of its manifest; none once it is ready or invalid."""
    return list(session.scalars(select(Upload).where(Upload.model_id == model_id).order_by(Upload.position)))


def unfinished(session: Session, tenant: str, manifest: Manifest) -> Model | None:
    """A model of the tenant that is being uploaded from the same manifest: it is continued, not begun again."""
    candidates = select(Model).where(
        Model.tenant == tenant,
        Model.state == "uploading",
        Model.name == manifest.name,
        Model.size == manifest.size,
        Model.deleted_at.is_(None),
    )
    wanted = [(file.path, file.size, file.sha256) for file in manifest.files]
    for model in session.scalars(candidates.order_by(Model.id.desc())):
        given = [(upload.path, upload.size, upload.sha256) for upload in uploads_of(session, model.id)]
        if given == wanted and model.metadata_ == manifest.metadata:
            return model
    return None


def stored_content(session: Session, tenant: str, wanted: set[Content]) -> dict[Content, str]:
    """Storage keys of what the tenant's ready models hold already, newest first, as far as it is wanted."""
    found: dict[Content, str] = {}
    rows = select(Model.prefix, Model.files).where(
        Model.tenant == tenant, Model.state == "ready", Model.deleted_at.is_(None)
    )
    # Closed when enough was read: PostgreSQL keeps a cursor open for what is left.
    with session.execute(rows.order_by(Model.id.desc()).execution_options(yield_per=200)) as models:
        for prefix, files in models:
            for file in files:
                content = (file["sha256"], file["size"])
                if content in wanted:
                    found.setdefault(content, f"{prefix}/{file['path']}")
            if len(found) == len(wanted):
                break
    return found


def link_stored(storage: Storage, uploads: Sequence[Upload], known: dict[Content, str], folder: Path) -> None:
    """Put what is stored already in its place, as if it had been sent; it stays when the other model is deleted."""
    for upload in uploads:
        key = known.get((upload.sha256, upload.size))
        with suppress(StorageMissing):  # deleted since: it will be asked for
            if key is not None and storage.size(key) == upload.size:
                storage.link(key, folder / upload.id)


def check_whole(scratch: Path, uploads: Sequence[Upload]) -> None:
    """Raises `Conflict` while bytes are missing."""
    short = sum(partial.offset(scratch, upload.model_id, upload.id) != upload.size for upload in uploads)
    if short:
        raise Conflict(f"{short} of {len(uploads)} files are not here whole yet.", code="UPLOAD_INCOMPLETE")


def check_uploads(scratch: Path, uploads: Sequence[Upload], folder: Path) -> Checked:
    """Verify every digest, then check the model as one that came as an archive; `folder` takes links to the files.

    The partial files stay, so that all can be repeated after a crash. Raises `Invalid` and what `check_model` raises,
    `Conflict` when a file has to be sent after all.
    """
    files = {}
    for upload in uploads:
        source = partial.folder_of(scratch, upload.model_id) / upload.id
        path = folder / f"given.{upload.position}"
        link_or_copy(source, path) if upload.size else path.touch()
        if _is_kept(upload, source, path):
            files[upload.path] = (path, Stored(upload.size, upload.sha256))
    return check_model(files, [upload.path for upload in uploads], folder)


def _is_kept(upload: Upload, source: Path, path: Path) -> bool:
    digest = sha256()
    with path.open("rb") as file:
        head, rest = split_head(pieces(file))
        for piece in chain((head,), rest):
            digest.update(piece)
    if digest.hexdigest() != upload.sha256:
        raise _mismatch(upload, source)
    return POLICY.admit(upload.path, head)


def _mismatch(upload: Upload, source: Path) -> Invalid | Conflict:
    """The client's fault, unless the bytes are those of another model, which were the right ones once."""
    if not upload.size or source.stat().st_nlink <= _OWN_NAMES:
        detail = f"File {upload.position} of the manifest does not have the SHA-256 that stands there."
        return Invalid(detail, code="DIGEST_MISMATCH")
    source.unlink()
    log.error("What was stored with the SHA-256 %s has changed", upload.sha256)
    detail = f"What the service had stored of file {upload.position} already is damaged; send that file."
    return Conflict(detail, code="UPLOAD_INCOMPLETE")


def touch(session: Session, upload_id: str, expires_at: datetime) -> bool:
    """Bytes came: the upload lives on. False when it was dropped meanwhile."""
    return rows_changed(session, update(Upload).where(Upload.id == upload_id).values(expires_at=expires_at)) > 0


def touch_all(session: Session, model_id: str, expires_at: datetime) -> bool:
    """Somebody goes on with a model: all of its uploads live on. False when it was dropped meanwhile."""
    return rows_changed(session, update(Upload).where(Upload.model_id == model_id).values(expires_at=expires_at)) > 0


def forget(session: Session, model_id: str) -> None:
    """A model waits for nothing any more."""
    session.execute(delete(Upload).where(Upload.model_id == model_id))


def finish(session: Session, model_id: str, values: dict[str, Any]) -> bool:
    """The model is ready. False when it was deleted meanwhile."""
    return _end(session, model_id, values)


def refuse(session: Session, model_id: str, error: SecateurError) -> bool:
    """The model is invalid, for good. False when it was deleted meanwhile."""
    problem = {"code": error.code, "detail": error.detail, "status": error.status}
    return _end(session, model_id, {"state": "invalid", "size": 0, "facts": {"problem": problem}})


def _end(session: Session, model_id: str, values: dict[str, Any]) -> bool:
    waits = (Model.id == model_id, Model.state == "uploading", Model.deleted_at.is_(None))
    # The model first, as everywhere: two transactions that lock in different orders wait for each other.
    won = rows_changed(session, update(Model).where(*waits).values(**values)) > 0
    forget(session, model_id)
    return won


# Uploads that nobody finishes


def sweep(
    database: Database, storage: Storage, scratch: Path, grace_seconds: float = orphans.GRACE_SECONDS
) -> list[str]:
    """Drop models whose last byte came too long ago, and old bytes without a row; returns the ids."""
    with database.session_scope(read_only=True) as session:
        late = select(Upload.model_id).group_by(Upload.model_id).having(func.max(Upload.expires_at) < utc_now())
        expired = list(session.scalars(late))
    dropped = [model_id for model_id in expired if _expire(database, storage, scratch, model_id)]
    left = [model_id for model_id in partial.model_ids(scratch) if _is_left(database, scratch, model_id, grace_seconds)]
    return dropped + left


def _expire(database: Database, storage: Storage, scratch: Path, model_id: str) -> bool:
    try:
        with partial.alone(scratch, model_id):
            with database.session_scope() as session:
                newest = session.scalar(select(func.max(Upload.expires_at)).where(Upload.model_id == model_id))
                if newest is None or newest >= utc_now():  # a byte came, or another process was faster
                    return False
                session.execute(delete(Model).where(Model.id == model_id))  # and its uploads with it
            partial.remove(scratch, model_id)
            storage.delete_prefix(f"models/{model_id}")
    except Locked:
        return False
    log.info("The upload of %s expired", model_id)
    return True


def _is_left(database: Database, scratch: Path, model_id: str, grace_seconds: float) -> bool:
    """Whether a folder was left by a process that was killed, and is removed now."""
    with database.session_scope(read_only=True) as session:
        state = session.scalar(select(Model.state).where(Model.id == model_id, Model.deleted_at.is_(None)))
    if state == "uploading" or (state is None and not orphans.is_old(model_id, grace_seconds)):
        return False
    try:
        with partial.alone(scratch, model_id):
            partial.remove(scratch, model_id)
    except Locked:
        return False
    return True
