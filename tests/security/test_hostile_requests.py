"""Every hostile request is refused over HTTP with its code; no row and no file is left, nothing is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service.config import Settings
from service.tables import Base
from tests.security.corpus import Hostile
from tests.security.requests import DATA, MORE_MODELS, REQUESTS, Request, ask
from tests.service.routes import test_datasets, test_models
from tests.service.routes.test_manifests import begin
from tests.uploads import bert_files


@pytest.fixture(scope="module")
def waiting(shared_client: TestClient) -> dict[str, str]:
    """Ids of a model that waits for its files, and of its first upload."""
    model = begin(shared_client, bert_files())
    return {"model": model["id"], "upload": model["uploads"][0]["upload_url"].rpartition("/")[2]}


def _kept(client: TestClient, settings: Settings) -> tuple[dict[str, int], set[str]]:
    """How many rows each table has, and the files of the service with their sizes."""
    app: Any = client.app
    assert isinstance(app, FastAPI)
    with app.state.database.session_scope(read_only=True) as session:
        tables = Base.metadata.sorted_tables
        rows = {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}
    root = settings.data_dir.parent
    sizes = {str(path): path.stat().st_size for path in root.rglob("*") if path.is_file() and "db" not in path.suffix}
    return rows, {f"{path} {size}" for path, size in sizes.items() if size}


@pytest.fixture(autouse=True)
def nothing_kept(shared_client: TestClient, shared_settings: Settings, waiting: dict[str, str]) -> Iterator[None]:
    """Whatever a test asks for changes nothing."""
    before = _kept(shared_client, shared_settings)
    yield
    assert _kept(shared_client, shared_settings) == before


def assert_problem(answer: Any, status: int, code: str) -> None:
    """The refusal, as every refusal is told."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_request(shared_client: TestClient, waiting: dict[str, str], request_: Request) -> None:
    answer = ask(shared_client, request_, waiting)
    assert_problem(answer, request_.status, request_.code)


@pytest.mark.parametrize("hostile", MORE_MODELS, ids=lambda hostile: hostile.name)
def test_model(shared_client: TestClient, tmp_path: Path, hostile: Hostile) -> None:
    answer = test_models.post(shared_client, hostile.make(tmp_path / "marker"), "application/octet-stream")
    assert answer.status_code in (400, 413, 422)
    assert_problem(answer, answer.status_code, hostile.code)


@pytest.mark.parametrize("name", DATA)
def test_data(shared_client: TestClient, name: str) -> None:
    code, data = DATA[name]
    assert_problem(test_datasets.post(shared_client, {"train": data}), 422, code)
