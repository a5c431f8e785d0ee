"""Migrated databases, and the mark for tests that run on both kinds."""

import pytest

from service.migrate import upgrade

on_databases = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
"""Run the test on SQLite and on PostgreSQL."""


def migrate(url: str) -> None:
    """Bring an empty database to the newest schema."""
    upgrade(url)
