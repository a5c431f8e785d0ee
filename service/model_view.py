"""A model as the API shows it."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from fastapi import Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.catalog import family_of
from service.errors import NotFound
from service.intake import partial
from service.intake.uploads import uploads_of
from service.job_view import base_url
from service.schemas import StructureView, Supported, if_there
from service.support import supported
from service.tables import Model, Upload

_NOTHING = Supported(tasks=[], structures=[], criteria=[], exports=[])


class FileView(BaseModel):
    """One file of a model."""

    path: str
    size: int
    sha256: str


class UploadView(BaseModel):
    """One file that a manifest names."""

    path: str
    state: Literal["needed", "partial", "present"]
    upload_url: str = Field(description="takes the rest of the file by the tus protocol 1.0.0")
    offset: int = Field(description="bytes that are here")


class ModelProblem(BaseModel):
    """Why a model was refused."""

    code: str
    detail: str


class ModelView(BaseModel):
    """A model."""

    id: str
    object: str = "model"
    name: str
    state: str = Field(description="uploading, ready, invalid, or expired: kept as long as its job said, then removed")
    family: str | None = Field(description="this and the next are null of a model that never was ready")
    architecture: str | None
    task: str | None
    parameters: int | None
    size: int = Field(description="bytes of all files")
    dtype: str | None
    files: list[FileView]
    structure: StructureView
    supported: Supported
    parent_model_id: str | None
    job_id: str | None
    metadata: dict[str, str]
    created_at: datetime
    uploads: list[UploadView] | None = if_there("while the model is uploading")
    problem: ModelProblem | None = if_there("of an invalid model")


def show(model: Model) -> ModelView:
    """A row as clients see it."""
    ready, checked = model.state == "ready", model.state in ("ready", "expired")
    problem = model.facts.get("problem")
    return ModelView(
        id=model.id,
        name=model.name,
        state=model.state,
        family=model.family if checked else None,
        architecture=model.architecture if checked else None,
        task=model.task,
        parameters=model.parameters if checked else None,
        size=model.size,
        dtype=model.dtype if checked else None,
        files=model.files,
        structure=StructureView(**model.structure),
        supported=supported(family_of(model.family), uniform=model.facts["uniform"]) if ready else _NOTHING,
        parent_model_id=model.parent_model_id,
        job_id=model.job_id,
        metadata=model.metadata_,
        created_at=model.created_at,
        problem=ModelProblem(code=problem["code"], detail=problem["detail"]) if problem else None,
    )


def show_whole(session: Session, scratch: Path, model: Model, request: Request) -> ModelView:
    """A model, with its uploads where it has any."""
    return show_uploading(scratch, model, uploads_of(session, model.id), request)


def show_uploading(scratch: Path, model: Model, uploads: list[Upload], request: Request) -> ModelView:
    """A model with these uploads."""
    base = base_url(request)
    views = [_upload_view(scratch, upload, base) for upload in uploads]
    return show(model).model_copy(update={"uploads": views or None})


def _upload_view(scratch: Path, upload: Upload, base: str) -> UploadView:
    offset = partial.offset(scratch, upload.model_id, upload.id)
    return UploadView(
        path=upload.path,
        state="present" if offset == upload.size else "partial" if offset else "needed",
        upload_url=upload_url(base, upload),
        offset=offset,
    )


def upload_url(base: str, upload: Upload) -> str:
    """The address that takes a file's bytes."""
    return f"{base}/v1/uploads/{upload.id}"


def find_model(session: Session, tenant: str, model_id: str, *, for_update: bool = False) -> Model:
    """A tenant's model. Raises `NotFound`, the same for a foreign id and an unknown one.

    With `for_update` the row is locked: a job that is being created for it waits, or is waited for.
    """
    query = select(Model).where(Model.id == model_id, Model.tenant == tenant, Model.deleted_at.is_(None))
    model = session.scalar(query.with_for_update() if for_update else query)
    if model is None:
        raise NotFound("There is no such model.")
    return model
