"""Fixtures for the whole suite: real servers, one per session; a migrated database per test.

Everything that takes time to import is imported where it is used, so that collecting the suite stays fast.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from service.config import Settings
    from service.db import Database
    from service.embedded import EmbeddedBroker
    from tests.live import LiveService
    from tests.object_store import S3Server
    from tests.servers import PostgreSQL

TENANT = "default"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the whole suite."""
    parser.addoption(
        "--leases",
        choices=("short", "production"),
        default="short",
        help="leases of the fault tests: 3 s, or as they are in production, which takes longer",
    )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not reach a test."""
    for name in os.environ:
        if name.startswith("SECATEUR_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """One PostgreSQL for the session."""
    from tests.servers import postgresql

    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'per%cent.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.url(server.create())


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: PostgreSQL) -> str:
    """Name of a migrated database to copy from."""
    from tests.databases import migrate

    name = postgresql_server.create()
    migrate(postgresql_server.url(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy from."""
    from tests.databases import migrate

    file = tmp_path_factory.mktemp("template") / "secateur.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty, migrated database of this test alone: SQLite, or as `on_databases` asks."""
    if getattr(request, "param", "sqlite") == "sqlite":
        file = tmp_path / "secateur.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    name = server.create(request.getfixturevalue("postgresql_template"))
    yield server.url(name)
    server.drop(name)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedBroker]:
    """One Valkey for the session."""
    from tests.servers import valkey

    with valkey() as server:
        yield server


@pytest.fixture
def broker_url(valkey_server: EmbeddedBroker) -> str:
    """URL of an empty broker."""
    from redis import Redis

    with Redis(unix_socket_path=str(valkey_server.socket)) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[S3Server]:
    """One object store for the session."""
    from tests.object_store import object_store

    with object_store() as server:
        yield server


@pytest.fixture
def s3(object_store_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The object store, whose keys this process has for the length of the test."""
    from tests.object_store import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return object_store_server


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    """Settings of a service of this test alone, with short leases."""
    from pydantic import SecretStr

    from service.config import Settings

    return Settings(
        data_dir=tmp_path / "data",
        database_url=SecretStr(database_url),
        broker_url=SecretStr(broker_url),
        lease_seconds=3,
        heartbeat_seconds=0.5,
        reconcile_seconds=1,
        kill_grace_seconds=2,
        disk_reserve_bytes=1 << 20,
        sandbox="process",
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database of `settings`."""
    from service.db import Database

    database = Database(settings.database)
    yield database
    database.dispose()


@pytest.fixture
def api_key(database: Database) -> str:
    """An admin key of the tenant `default`."""
    from service.auth import issue_key

    with database.session_scope() as session:
        return issue_key(session, tenant=TENANT, name="test", scopes=["admin"])[1]


@pytest.fixture
def anonymous_client(settings: Settings) -> Iterator[TestClient]:
    """A client of the application in this process, without a key."""
    from starlette.testclient import TestClient

    from service.app import create_app

    with TestClient(create_app(settings), base_url="http://127.0.0.1:8400") as client:
        yield client


@pytest.fixture
def client(anonymous_client: TestClient, api_key: str) -> TestClient:
    """A client of the application in this process that sends `api_key`."""
    anonymous_client.headers["Authorization"] = f"Bearer {api_key}"
    return anonymous_client


@pytest.fixture
def live_service(settings: Settings, api_key: str) -> Iterator[LiveService]:
    """The real thing on the loopback: an API process and a worker process."""
    from tests.live import LiveService

    with LiveService(settings, api_key) as service:
        service.start_api()
        service.start_worker()
        yield service
