"""One application for all tests of a module: hostile uploads must leave it as it was, so they can share it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.auth import new_plaintext
from service.config import Settings


@pytest.fixture(scope="module")
def shared_settings(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Settings:
    """Settings of the shared application."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(sqlite_template, folder / "secateur.db")
    return Settings(
        data_dir=folder / "data",
        database_url=SecretStr(f"sqlite:///{folder / 'secateur.db'}"),
        broker_url=SecretStr("redis://127.0.0.1:1/0"),
        admin_key=SecretStr(new_plaintext()),
        disk_reserve_bytes=1 << 20,
    )


@pytest.fixture(scope="module")
def shared_client(shared_settings: Settings) -> Iterator[TestClient]:
    """A client of the shared application, with an admin key."""
    assert shared_settings.admin_key is not None
    with TestClient(create_app(shared_settings), base_url="http://127.0.0.1:8400") as client:
        client.headers["Authorization"] = f"Bearer {shared_settings.admin_key.get_secret_value()}"
        yield client
