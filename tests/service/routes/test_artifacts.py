"""Downloads of single files, from a folder and from an object store, by way of the service and past it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.app import create_app
from service.client import Client
from service.config import Settings
from tests.object_store import FaultyProxy, S3Server
from tests.service.published import FILES, Published, publish
from tests.uploads import bert_files, tar

NAME = "huggingface/model.safetensors"


def app_with(settings: Settings, api_key: str, **changes: Any) -> TestClient:
    """The application with other settings, and a client that has a key."""
    app = create_app(settings.model_copy(update=changes))
    return TestClient(app, base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"})


@pytest.fixture(params=["file", "s3", "presigned"])
def served(request: pytest.FixtureRequest, settings: Settings, api_key: str) -> Iterator[TestClient]:
    """The application over each kind of storage."""
    changes: dict[str, Any] = {}
    if request.param != "file":
        changes["storage_url"] = request.getfixturevalue("s3").bucket()
    with app_with(settings, api_key, presigned_downloads=request.param == "presigned", **changes) as client:
        client.headers["X-Kind"] = request.param
        yield client


@pytest.fixture
def published(served: TestClient, tmp_path: Path) -> Published:
    """A finished job."""
    app = served.app
    assert isinstance(app, FastAPI)
    return publish(app, tmp_path)


def addresses(published: Published) -> list[str]:
    """Where one file can be had: as an artifact and as a file of the model."""
    artifact = published.artifacts[NAME]
    return [f"/v1/artifacts/{artifact.id}/content", f"/v1/models/{published.model.id}/files/model.safetensors"]


def test_a_whole_file_comes_from_the_service_or_from_where_it_says(served: TestClient, published: Published) -> None:
    for address in addresses(published):
        answer = served.get(address, follow_redirects=False)
        if served.headers["X-Kind"] == "presigned":
            assert answer.status_code == 307
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["repr-digest"].startswith("sha-256=:")
            answer = httpx.get(answer.headers["location"], trust_env=False)  # type: ignore[assignment] # httpx's own
            assert 'filename="model.safetensors"' in answer.headers["content-disposition"]
        assert (answer.status_code, answer.content) == (200, FILES[NAME])


def test_ranges_and_conditions_are_the_services_own(served: TestClient, published: Published) -> None:
    etag = f'"{hashlib.sha256(FILES[NAME]).hexdigest()}"'
    for address in addresses(published):
        head = served.head(address)
        assert (head.status_code, head.headers["etag"]) == (200, etag)
        part = served.get(address, headers={"Range": "bytes=100-199", "If-Range": etag}, follow_redirects=False)
        assert (part.status_code, part.content) == (206, FILES[NAME][100:200])
        known = served.get(address, headers={"If-None-Match": etag}, follow_redirects=False)
        assert known.status_code == 304


def test_the_archive_is_never_elsewhere(served: TestClient, published: Published) -> None:
    answer = served.get(f"/v1/jobs/{published.job.id}/model", follow_redirects=False)
    assert answer.status_code == 200
    assert answer.headers["etag"].strip('"') == hashlib.sha256(answer.content).hexdigest()


def test_the_client_follows_without_its_key(
    served: TestClient, published: Published, s3: S3Server, tmp_path: Path
) -> None:
    keys: list[str | None] = []

    def pass_on(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8400:
            headers = dict(request.headers.items())
            answer = served.request(request.method, str(request.url), headers=headers, follow_redirects=False)
        else:
            keys.append(request.headers.get("authorization"))
            answer = httpx.get(request.url, headers=request.headers, trust_env=False)  # type: ignore[assignment]
        return httpx.Response(answer.status_code, headers=dict(answer.headers), stream=httpx.ByteStream(answer.content))

    key = served.headers["authorization"].removeprefix("Bearer ")
    with Client("http://127.0.0.1:8400", key, transport=httpx.MockTransport(pass_on)) as client:
        target = client.download_artifact(published.artifacts[NAME].id, tmp_path / "file")
    assert target.read_bytes() == FILES[NAME]
    assert keys == ([None] if served.headers["X-Kind"] == "presigned" else [])


def test_a_store_that_is_away_is_503_and_keeps_nothing(
    settings: Settings, api_key: str, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = FaultyProxy(s3, lambda method, path, nth: "refuse")
    url = s3.bucket()
    with app_with(settings, api_key, storage_url=proxy.address(url)) as client:
        body = tar(bert_files())
        answer = client.post("/v1/models", content=body, headers={"Content-Type": "application/x-tar"})
        assert (answer.status_code, answer.json()["code"]) == (503, "STORAGE_AWAY")
        assert answer.headers["retry-after"]
        ready = client.get("/readyz").json()
        assert "storage" in ready["missing"]
        told = answer.text + str(ready) + caplog.text
        assert not any(word in told for word in ("botocore", "words", "AKIA", proxy.url))
        assert client.get("/v1/models").json()["data"] == []
    proxy.close()
    assert "<Key>" not in s3.inside(url)
