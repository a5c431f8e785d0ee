"""One application for all tests of a module: hostile uploads must leave it as it was, so they can share it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.config import Settings
from tests.listening import bearer, standalone


@pytest.fixture(scope="module")
def shared_settings(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Settings:
    """Settings of the shared application."""
    return standalone(tmp_path_factory.mktemp("shared"), sqlite_template)


@pytest.fixture(scope="module")
def shared_client(shared_settings: Settings) -> Iterator[TestClient]:
    """A client of the shared application, with an admin key."""
    with TestClient(create_app(shared_settings), base_url="http://127.0.0.1:8400") as client:
        client.headers.update(bearer(shared_settings))
        yield client
