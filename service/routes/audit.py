"""The audit log of the caller's tenant."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select

from service.deps import Admin, SessionDep
from service.paging import Cursor, Limit, newest_first
from service.problems import responses
from service.schemas import AuditEntryView, Page, UtcTime
from service.tables import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["operations"])


@router.get("", summary="List what keys have changed", response_model=Page[AuditEntryView], responses=responses(422))
def list_audit_entries(
    principal: Admin,
    session: SessionDep,
    action: Annotated[str | None, Query(max_length=60, description="as `job.cancel`")] = None,
    target: Annotated[str | None, Query(max_length=100, description="id of what was changed")] = None,
    key_id: Annotated[str | None, Query(max_length=40, description="who changed it")] = None,
    created_after: Annotated[UtcTime | None, Query()] = None,
    created_before: Annotated[UtcTime | None, Query()] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Any:
    """Newest first: one entry for each request that changed something, none for what only asked or was refused."""
    query = select(AuditEntry).where(AuditEntry.tenant == principal.tenant)
    for column, wanted in ((AuditEntry.action, action), (AuditEntry.target, target), (AuditEntry.key_id, key_id)):
        if wanted is not None:
            query = query.where(column == wanted)
    if created_after is not None:
        query = query.where(AuditEntry.time > created_after)
    if created_before is not None:
        query = query.where(AuditEntry.time < created_before)
    rows, next_cursor = newest_first(session, query, AuditEntry.id, limit, cursor)
    return Page[AuditEntryView](data=[_view(row) for row in rows], next_cursor=next_cursor)


def _view(row: AuditEntry) -> AuditEntryView:
    return AuditEntryView(
        id=row.id,
        created_at=row.time,
        key_id=row.key_id,
        action=row.action,
        target=row.target,
        request_id=row.request_id,
        data=row.data,
    )
