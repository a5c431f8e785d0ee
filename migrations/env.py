"""Alembic's entry: runs migrations on the connection or URL that `service.migrate` hands over."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Connection

from service.config import get_settings
from service.db import make_engine
from service.tables import Base, UtcDateTime


def render_item(type_: str, item: Any, context_: Any) -> str | Literal[False]:
    """Plain SQLAlchemy types in revisions, so that history does not depend on today's `service.tables`."""
    if isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if isinstance(item, JSON):
        return "Json"
    return False


def run(connection: Connection) -> None:
    """Run what Alembic was asked for on one connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(context.config.get_main_option("sqlalchemy.url") or get_settings().database, bounded=False)
    with engine.begin() as opened:
        run(opened)
    engine.dispose()
