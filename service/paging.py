"""Lists: newest first, a page at a time, resumed by an opaque cursor."""

from typing import Annotated, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")

LARGEST = 100
Limit = Annotated[int, Query(ge=1, description="rows per page; larger than 100 counts as 100")]
Cursor = Annotated[
    str | None, Query(pattern="^[a-z]{2,4}_[0-9A-Z]{26}$", description="`next_cursor` of the page before")
]


def newest_first(
    session: Session, query: Select[T], id_column: InstrumentedAttribute[str], limit: int, cursor: str | None
) -> tuple[list[T], str | None]:
    """One page of `query` by falling id, and the cursor of the next page, which is None at the end."""
    size = min(limit, LARGEST)
    if cursor is not None:
        query = query.where(id_column < cursor)
    rows = list(session.scalars(query.order_by(id_column.desc()).limit(size + 1)))
    return rows[:size], getattr(rows[size - 1], id_column.key) if len(rows) > size else None
