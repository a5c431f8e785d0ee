"""Lists: newest first, a page at a time, resumed by an opaque cursor."""

import base64
import binascii
from typing import Annotated, Any, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.errors import Invalid

T = TypeVar("T")

LARGEST = 100
Limit = Annotated[int, Query(ge=1, description="rows per page; larger than 100 counts as 100")]
Cursor = Annotated[
    str | None, Query(max_length=100, pattern="^[A-Za-z0-9_-]+$", description="`next_cursor` of the page before")
]


def newest_first(
    session: Session, query: Select[T], id_column: InstrumentedAttribute[str], limit: int, cursor: str | None
) -> tuple[list[T], str | None]:
    """One page of `query` by falling id, and the cursor of the next page, None at the end.

    Raises `Invalid` when the cursor is not one of ours.
    """
    size = min(limit, LARGEST)
    if cursor is not None:
        query = query.where(id_column < _decode(cursor))
    rows = list(session.scalars(query.order_by(id_column.desc()).limit(size + 1)))
    more = len(rows) > size
    return rows[:size], _encode(getattr(rows[size - 1], id_column.key)) if more else None


def _encode(last_id: Any) -> str:
    return base64.urlsafe_b64encode(str(last_id).encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        last_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        if last_id.isprintable():
            return last_id
    except (binascii.Error, ValueError):
        pass
    raise Invalid("This cursor did not come from a list of this service.", code="INVALID_CURSOR")
