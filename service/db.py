"""Database sessions. One request, or one step of a job, is one transaction; this module alone commits."""

import copy
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Update, create_engine, event
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Float

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised while the database cannot be reached."""

_WAL_IS_SAFE = sqlite3.sqlite_version_info >= (3, 51, 3)
"""Earlier versions can corrupt a database when its write-ahead log is reset (sqlite.org, release 3.51.3)."""


class db_epoch(GenericFunction[float]):
    """Seconds since 1970 by the database's clock: lease times must not depend on any host's."""

    type = Float()
    inherit_cache = True


@compiles(db_epoch, "postgresql")
def _postgresql_epoch(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(db_epoch, "sqlite")
def _sqlite_epoch(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def make_engine(url: str) -> Engine:
    """An engine for PostgreSQL or SQLite with the settings that each needs to keep its promises."""
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args={"connect_timeout": 5})


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own choice cannot take the write lock
    connection.execute(f"PRAGMA journal_mode={'WAL' if _WAL_IS_SAFE else 'DELETE'}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail with "database is locked" without waiting.
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")


class Database:
    """The one place that opens and ends transactions."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._before_commit: Callable[[Session], None] | None = None

    def ending_with(self, before_commit: Callable[[Session], None]) -> "Database":
        """The same database; `before_commit` is the last thing to happen in each of its writing transactions."""
        other = copy.copy(self)
        other._before_commit = before_commit
        return other

    @contextmanager
    def session_scope(self, *, read_only: bool = False) -> Iterator[Session]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Functions given to `on_commit` run after the commit, in order; their errors are theirs to handle.
        """
        with self._sessions() as session:
            if read_only:
                session.connection(execution_options={"read_only": True, "postgresql_readonly": True})
            try:
                yield session
                if self._before_commit is not None and not read_only:
                    self._before_commit(session)
                session.commit()
            except BaseException:
                session.rollback()
                raise
        for callback in session.info.pop("on_commit", []):
            callback()

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def on_commit(session: Session, callback: Callable[[], None]) -> None:
    """Run `callback` once the session's transaction has been committed, never before, not at all on rollback."""
    session.info.setdefault("on_commit", []).append(callback)


def rows_changed(session: Session, statement: Update) -> int:
    """Execute an UPDATE and count the rows that it hit; objects that the session holds already stay as they are."""
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return result.rowcount
