"""Brings a database to the current schema; works from a checkout and from an installed package alike."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import migrations
from service.db import make_engine

_LOCK = 0x5ECA7E02
"""Number of the PostgreSQL advisory lock that lets one migrator run at a time."""


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration without an ini file; the URL never passes through a file or a `%` expansion."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def upgrade(database_url: str) -> None:
    """Run every migration that is missing, all or none; any number of processes may call it at once.

    A database that a newer release has migrated stays as it is.
    """
    engine = make_engine(database_url, bounded=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
            if not is_ahead(connection):
                command.upgrade(configuration(connection), "head")
    finally:
        engine.dispose()


def is_behind(connection: Connection) -> bool:
    """Whether migrations that this release has are missing."""
    revision = _revision(connection)
    return revision is None or revision in _revisions()[1:]  # the head comes first


def is_ahead(connection: Connection) -> bool:
    """Whether a newer release has migrated it: migrations only add, so this one goes on working with it."""
    revision = _revision(connection)
    return revision is not None and revision not in _revisions()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _revisions() -> tuple[str, ...]:
    return tuple(script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions())


def check(database_url: str) -> None:
    """Raises `alembic.util.CommandError` when the database and `service.tables` differ."""
    engine = make_engine(database_url)
    try:
        with engine.connect() as connection:
            command.check(configuration(connection))
    finally:
        engine.dispose()
