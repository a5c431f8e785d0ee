"""Data sets: rows of a task, uploaded as a form or an archive of splits, listed, shown, deleted."""

import functools
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.db import on_commit
from service.deps import DatabaseDep, Reader, SessionDep, SettingsDep, StorageDep, Writer
from service.errors import Conflict, NotFound
from service.intake import fields
from service.intake.archive import MEDIA_TYPES, check_media_type
from service.intake.body import Pipe, check_digest, receive, wanted_digest
from service.intake.datasets import publish, read_archive, read_form
from service.intake.limits import limits_of
from service.intake.multipart import Multipart
from service.intake.rows import KINDS, SPLITS, kind_of
from service.intake.scratch import upload_folder
from service.paging import Cursor, Limit, newest_first
from service.problems import responses
from service.quotas import within_quota
from service.routes.creation import create, remove_bytes
from service.schemas import Page
from service.states import FINAL
from service.tables import Dataset, Job, utc_now

router = APIRouter(prefix="/v1/datasets", tags=["data sets"])


class SplitView(BaseModel):
    """One split."""

    rows: int
    size: int
    sha256: str


class DatasetView(BaseModel):
    """A data set."""

    id: str
    object: str = "dataset"
    name: str
    task: str
    splits: dict[str, SplitView]
    labels: list[str] | None = None
    created_at: datetime


def show(dataset: Dataset) -> DatasetView:
    """A row as clients see it."""
    return DatasetView(
        id=dataset.id,
        name=dataset.name,
        task=dataset.task,
        splits={name: SplitView(**split) for name, split in dataset.splits.items()},
        labels=(dataset.labels or {}).get("names"),
        created_at=dataset.created_at,
    )


def find_dataset(session: Session, tenant: str, dataset_id: str, *, for_update: bool = False) -> Dataset:
    """A tenant's data set. Raises `NotFound`, the same for a foreign id and an unknown one.

    With `for_update` the row is locked: a job that is being created for it waits, or is waited for.
    """
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant == tenant, Dataset.deleted_at.is_(None))
    dataset = session.scalar(query.with_for_update() if for_update else query)
    if dataset is None:
        raise NotFound("There is no such data set.")
    return dataset


_FILE = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_FORM = {**dict.fromkeys(SPLITS, _FILE), "name": _TEXT, "task": {**_TEXT, "enum": list(KINDS)}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": _FORM}},
            **{kind: {"schema": _FILE} for kind in sorted(MEDIA_TYPES)},
        },
    }
}


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    responses=responses(400, 409, 413, 415, 422, 507),
    summary="Upload a data set",
    openapi_extra=_BODY,
)
async def upload_dataset(
    request: Request,
    principal: Writer,
    database: DatabaseDep,
    settings: SettingsDep,
    storage: StorageDep,
    name: Annotated[str | None, Query(description="default: dataset", max_length=200)] = None,
    task: Annotated[str | None, Query(description=f"what the rows are for: {', '.join(KINDS)}", max_length=50)] = None,
) -> Response:
    """JSONL or CSV per split: form parts `train`, `validation`, `test`, `calibration`, or an archive of such files."""
    content_type = request.headers.get("content-type", "")
    is_form = content_type.partition(";")[0].strip().lower() == "multipart/form-data"
    if not is_form:
        check_media_type(content_type)
    wanted = wanted_digest(request.headers.get("repr-digest"))
    limits = limits_of(settings, "dataset")
    limits = await run_in_threadpool(within_quota, database, settings, principal.tenant, limits)
    if task is not None or not is_form:
        kind_of(task)

    def store(pipe: Pipe) -> Response:
        with upload_folder(settings.scratch) as folder:
            form = Multipart(pipe, content_type) if is_form else None
            read = read_form(form, folder, limits, task) if form else (read_archive(pipe, folder, limits, task), {})
            rows, given = read
            check_digest(pipe, wanted)
            said = given.get("name", "dataset" if name is None else name)
            row = publish(storage, rows, tenant=principal.tenant, name=fields.name(said))
            sha256 = form.sha256() if form else pipe.sha256()
            return create(database, settings, storage, principal, request, sha256, row, show)

    return await receive(request, limits, store)


@router.get("", response_model=Page[DatasetView], responses=responses(422), summary="List data sets, newest first")
def list_datasets(
    principal: Reader, session: SessionDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[DatasetView]:
    """The tenant's data sets."""
    query = select(Dataset).where(Dataset.tenant == principal.tenant, Dataset.deleted_at.is_(None))
    rows, following = newest_first(session, query, Dataset.id, limit, cursor)
    return Page[DatasetView](data=[show(row) for row in rows], next_cursor=following)


@router.get("/{dataset_id}", response_model=DatasetView, responses=responses(404), summary="Show a data set")
def get_dataset(dataset_id: str, principal: Reader, session: SessionDep) -> DatasetView:
    """One data set."""
    return show(find_dataset(session, principal.tenant, dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=responses(404, 409), summary="Delete a data set")
def delete_dataset(dataset_id: str, principal: Writer, session: SessionDep, storage: StorageDep) -> None:
    """Deletes a data set that no unfinished job needs."""
    dataset = find_dataset(session, principal.tenant, dataset_id, for_update=True)
    needed = select(Job.id).where(Job.dataset_id == dataset_id, Job.status.not_in(FINAL)).limit(1)
    if session.scalar(needed) is not None:
        raise Conflict("A job that has not finished needs this data set; cancel it first.", code="DATASET_IN_USE")
    dataset.deleted_at = utc_now()
    on_commit(session, functools.partial(remove_bytes, storage, dataset.prefix))
