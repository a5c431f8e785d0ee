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

_FIRST_SAFE_WAL = (3, 51, 3)
"""Earlier versions of SQLite can corrupt a database when its write-ahead log is reset (sqlite.org, release 3.51.3)."""
_BUSY_SECONDS = 30
"""How long SQLite waits for another writer."""
_CONNECT_SECONDS = 5
_CONNECTIONS = 30
"""To PostgreSQL, of one process: opened when they are needed, then kept, as opening one costs more than a request."""
_POOL_SECONDS = 5
"""How long a transaction waits for one of PostgreSQL's connections to be free."""


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


def make_engine(url: str, *, bounded: bool = True) -> Engine:
    """An engine for PostgreSQL or SQLite with the settings that each needs to keep its promises.

    `bounded`: no statement may take longer than seconds; migrations may.
    """
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
        event.listen(engine, "first_connect", _choose_journal)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    pool = {"pool_size": _CONNECTIONS, "max_overflow": 0, "pool_timeout": _POOL_SECONDS}
    engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": _CONNECT_SECONDS}, **pool)
    if bounded:
        event.listen(engine, "do_connect", _connect_bounded)
    return engine


def _connect_bounded(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    from service.postgresql import connect  # SQLite needs no driver of PostgreSQL

    return connect(arguments, options)


def journal_mode(version: tuple[int, ...]) -> str:
    """How a database is journalled by SQLite of a version."""
    return "WAL" if version >= _FIRST_SAFE_WAL else "DELETE"


def _choose_journal(connection: sqlite3.Connection, _record: Any) -> None:
    """Once a process, before other threads have connections: changing it takes the database for oneself alone."""
    connection.execute(f"PRAGMA journal_mode={journal_mode(sqlite3.sqlite_version_info)}")


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own choice cannot take the write lock
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail with "database is locked" without waiting.
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")


_READING: dict[str, dict[str, Any]] = {
    "postgresql": {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"},
}
"""Options of reading transactions; SQLite's see one moment anyway."""


class Database:
    """The one place that opens and ends transactions."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._before_commit: Callable[[Session], None] | None = None
        self._reading = {"read_only": True} | _READING.get(self.engine.dialect.name, {})

    def ending_with(self, before_commit: Callable[[Session], None]) -> "Database":
        """The same database; `before_commit` is the last thing to happen in each of its writing transactions."""
        other = copy.copy(self)
        other._before_commit = before_commit
        return other

    @contextmanager
    def session_scope(self, *, read_only: bool = False) -> Iterator[Session]:
        """A transaction: committed when the block ends, rolled back when it raises.

        One that is `read_only` sees the database as it was at its first query, whatever is committed meanwhile.
        Functions given to `on_commit` run after the commit, in order; their errors are theirs to handle.
        """
        with self._sessions() as session:
            if read_only:
                session.connection(execution_options=self._reading)
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
