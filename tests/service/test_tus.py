"""The tus protocol 1.0.0: what its own Python client does, and what the protocol asks of a server."""

import base64
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from service.config import Settings
from service.intake import partial
from tests.live import LiveService
from tests.service.routes.test_manifests import CHUNK, begin, complete, manifest, send
from tests.service.routes.test_models import MODELS
from tests.uploads import bert_files

WEIGHTS = 1
"""Where the weights stand in the manifest of `bert_files`."""


@pytest.fixture
def live(settings: Settings, api_key: str) -> Iterator[LiveService]:
    """An API process of its own, without a worker."""
    with LiveService(settings, api_key) as service:
        service.start_api()
        yield service


def _begin_live(live: LiveService) -> dict[str, Any]:
    answer = live.client.post(MODELS, json=manifest(bert_files()))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_tuspy_uploads_a_model(live: LiveService) -> None:
    files = bert_files()
    model = _begin_live(live)
    client = TusClient(f"{live.url}{MODELS}/{model['id']}/uploads", {"Authorization": f"Bearer {live.api_key}"})
    for upload in model["uploads"]:
        stream = io.BytesIO(files[upload["path"]])
        client.uploader(file_stream=stream, url=upload["upload_url"], chunk_size=1000, upload_checksum=True).upload()
    done = live.client.post(f"{MODELS}/{model['id']}/complete")
    assert (done.status_code, done.json()["state"]) == (200, "ready"), done.text
    weights = live.client.get(f"{MODELS}/{model['id']}/files/model.safetensors")
    assert weights.content == files["model.safetensors"]


def test_tuspy_creates_and_resumes_after_a_kill(live: LiveService) -> None:
    files = bert_files()
    model = _begin_live(live)
    client = TusClient(f"{live.url}{MODELS}/{model['id']}/uploads", {"Authorization": f"Bearer {live.api_key}"})
    for path, content in files.items():
        uploader = client.uploader(
            file_stream=io.BytesIO(content), metadata={"path": path}, chunk_size=len(content) // 3
        )
        uploader.upload_chunk()  # type: ignore[no-untyped-call] # the package is typed in part
        assert uploader.offset == len(content) // 3
    assert live.api is not None
    live.api.kill()
    live.api.wait()
    live.start_api()
    uploads = live.client.get(f"{MODELS}/{model['id']}").json()["uploads"]
    for upload in uploads:
        content = files[upload["path"]]
        again = client.uploader(file_stream=io.BytesIO(content), url=upload["upload_url"])
        assert again.offset == len(content) // 3
        again.upload()
    assert live.client.post(f"{MODELS}/{model['id']}/complete").json()["state"] == "ready"


def test_a_file_that_the_manifest_does_not_name_is_not_created(live: LiveService) -> None:
    model = _begin_live(live)
    client = TusClient(f"{live.url}{MODELS}/{model['id']}/uploads", {"Authorization": f"Bearer {live.api_key}"})
    for path, content in (("other.safetensors", b"x"), ("config.json", b"of another size"), ("../up", b"x")):
        with pytest.raises(TusCommunicationError):
            client.uploader(file_stream=io.BytesIO(content), metadata={"path": path}).upload()


@pytest.fixture
def upload(client: TestClient) -> dict[str, Any]:
    """The upload of a tiny model's weights."""
    return dict(begin(client, bert_files())["uploads"][WEIGHTS])


@pytest.fixture
def content() -> bytes:
    """What it takes."""
    return bert_files()["model.safetensors"]


def offset(client: TestClient, upload: dict[str, Any]) -> int:
    """What the service says is here."""
    return int(client.head(upload["upload_url"]).headers["upload-offset"])


def checksum(content: bytes, algorithm: str = "sha256") -> dict[str, str]:
    """The header of a chunk."""
    digest = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    return {"Upload-Checksum": f"{algorithm} {digest}"}


def test_the_protocol_is_announced(client: TestClient, upload: dict[str, Any]) -> None:
    for url in ("/v1/uploads", upload["upload_url"]):
        answer = client.options(url)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["tus-extension"].split(",") == ["creation", "checksum", "expiration", "termination"]
        assert answer.headers["tus-checksum-algorithm"].split(",") == ["sha256", "sha1"]
        assert int(answer.headers["tus-max-size"]) > 0


def test_head_tells_where_to_go_on(client: TestClient, upload: dict[str, Any], content: bytes) -> None:
    sent = send(client, upload, content[:700])
    assert (sent.status_code, sent.content) == (204, b"")
    assert sent.headers["upload-offset"] == "700"
    assert sent.headers["tus-resumable"] == "1.0.0"
    assert sent.headers["upload-expires"].endswith("GMT")
    head = client.head(upload["upload_url"])
    assert head.status_code == 200
    assert head.headers["upload-offset"] == "700"
    assert head.headers["upload-length"] == str(len(content))
    assert head.headers["cache-control"] == "no-store"
    assert head.headers["upload-metadata"] == f"path {base64.b64encode(b'model.safetensors').decode()}"


def test_the_length_of_the_file_is_the_truth(client: TestClient, upload: dict[str, Any], settings: Settings) -> None:
    send(client, upload, b"x" * 100)
    (file,) = [path for path in settings.scratch.rglob("upl_*") if path.is_file()]
    os.truncate(file, 60)
    assert offset(client, upload) == 60
    assert send(client, upload, b"y" * 10, 100).status_code == 409
    assert send(client, upload, b"y" * 10, 60).headers["upload-offset"] == "70"
    assert file.read_bytes() == b"x" * 60 + b"y" * 10


@pytest.mark.parametrize("given", [0, 699, 701, 10**15])
def test_another_offset_is_a_conflict(client: TestClient, upload: dict[str, Any], content: bytes, given: int) -> None:
    send(client, upload, content[:700])
    answer = send(client, upload, b"x", given)
    expected = (413, "CHUNK_TOO_LARGE") if given > len(content) else (409, "OFFSET_MISMATCH")
    assert (answer.status_code, answer.json()["code"]) == expected
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert offset(client, upload) == 700


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_chunk_with_another_checksum_is_dropped(
    client: TestClient, upload: dict[str, Any], content: bytes, algorithm: str
) -> None:
    assert send(client, upload, content[:500], 0, **checksum(content[:500], algorithm)).status_code == 204
    bad = send(client, upload, content[500:900], 500, **checksum(b"other", algorithm))
    assert (bad.status_code, bad.json()["code"]) == (460, "CHECKSUM_MISMATCH")
    assert offset(client, upload) == 500
    assert send(client, upload, content[500:], 500, **checksum(content[500:], algorithm)).status_code == 204


@pytest.mark.parametrize("header", ["md5 eA==", "sha256", "sha256 ?", "sha256 ", "", "sha256 \xe9"])
def test_checksums_that_are_not_spoken_are_refused(client: TestClient, upload: dict[str, Any], header: str) -> None:
    answer = send(client, upload, b"x", 0, **{"Upload-Checksum": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (400, "CHECKSUM_UNSUPPORTED")
    assert offset(client, upload) == 0


@pytest.mark.parametrize("declared", [True, False])
def test_more_than_the_manifest_says_is_too_much(
    client: TestClient, upload: dict[str, Any], content: bytes, declared: bool
) -> None:
    send(client, upload, content[:100])
    body: Any = content[100:] + b"x" if declared else iter([content[100:], b"x" * 3_000_000])
    answer = send(client, upload, body, 100)
    assert (answer.status_code, answer.json()["code"]) == (413, "CHUNK_TOO_LARGE")
    assert offset(client, upload) == 100


def test_requests_that_are_not_of_the_protocol_are_refused(client: TestClient, upload: dict[str, Any]) -> None:
    url = upload["upload_url"]
    plain = client.patch(url, content=b"x", headers={**CHUNK, "Upload-Offset": "0", "Content-Type": "text/plain"})
    assert (plain.status_code, plain.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    for wrong in ("", "-1", "1.0", "x", "9" * 30):
        answer = client.patch(url, content=b"x", headers={**CHUNK, "Upload-Offset": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "HEADER_INVALID")
    other = {**CHUNK, "Upload-Offset": "0", "Tus-Resumable": "0.2.2"}
    for method in ("HEAD", "PATCH", "DELETE"):
        answer = client.request(method, url, headers=other)
        assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    assert offset(client, upload) == 0


def test_a_chunk_that_would_touch_the_reserve_is_refused(
    client: TestClient, upload: dict[str, Any], content: bytes, settings: Settings
) -> None:
    send(client, upload, content[:100])
    app: Any = client.app
    app.state.settings = settings.model_copy(update={"disk_reserve_bytes": 1 << 60})
    answer = send(client, upload, content[100:], 100)
    assert (answer.status_code, answer.json()["code"]) == (507, "NO_SPACE")
    app.state.settings = settings
    assert offset(client, upload) == 100
    assert send(client, upload, content[100:], 100).status_code == 204


def test_a_second_writer_is_locked_out(client: TestClient, upload: dict[str, Any], settings: Settings) -> None:
    model_id = client.get(MODELS).json()["data"][0]["id"]
    upload_id = upload["upload_url"].rpartition("/")[2]
    with partial.writing(settings.scratch, model_id, upload_id):
        for answer in (
            send(client, upload, b"x"),
            client.delete(upload["upload_url"]),
        ):
            assert (answer.status_code, answer.json()["code"]) == (423, "UPLOAD_LOCKED")
    assert send(client, upload, b"x").status_code == 204


def test_a_writer_and_the_completion_keep_each_other_out(client: TestClient, settings: Settings) -> None:
    files = bert_files()
    model = begin(client, files)
    upload_id = model["uploads"][0]["upload_url"].rpartition("/")[2]
    with partial.writing(settings.scratch, model["id"], upload_id):
        assert complete(client, model).status_code == 423
        assert send(client, model["uploads"][1], b"x").status_code == 204  # another file is free
    with partial.alone(settings.scratch, model["id"]):
        assert send(client, model["uploads"][0], b"x").status_code == 423


def test_two_writers_at_once_leave_every_byte_in_its_place(live: LiveService) -> None:
    content = bert_files()["model.safetensors"]
    upload = _begin_live(live)["uploads"][WEIGHTS]
    seen: list[int] = []

    def slowly() -> Iterator[bytes]:
        yield content[:10]
        live.wait_for(lambda: intrude() == 423, "the first writer")
        yield content[10:]

    def intrude() -> int:
        """At an offset that is wrong, so that nothing is written before the first writer has begun."""
        seen.append(live.client.patch(path, content=b"intruder", headers={**CHUNK, "Upload-Offset": "5"}).status_code)
        return seen[-1]

    path = urlsplit(upload["upload_url"]).path
    first = live.client.patch(path, content=slowly(), headers={**CHUNK, "Upload-Offset": "0"})
    assert first.status_code == 204
    assert set(seen) <= {409, 423}
    assert live.client.head(path).headers["upload-offset"] == str(len(content))


def test_a_chunk_that_breaks_off_stays_as_far_as_it_came_unless_it_has_a_checksum(live: LiveService) -> None:
    content = os.urandom(5 << 20)
    files = {"config.json": content, "vocab.txt": content}
    plain, checked = live.client.post(MODELS, json=manifest(files)).json()["uploads"]
    for upload, headers in ((plain, {}), (checked, checksum(content))):
        _break_off(live, upload, content[: 3 << 20], headers)
    live.wait_for(lambda: _live_offset(live, plain) > 0, "the bytes")
    assert (2 << 20) <= _live_offset(live, plain) <= (3 << 20)
    assert _live_offset(live, checked) == 0


def _live_offset(live: LiveService, upload: dict[str, Any]) -> int:
    return int(live.client.head(urlsplit(upload["upload_url"]).path).headers["upload-offset"])


def _break_off(live: LiveService, upload: dict[str, Any], content: bytes, headers: dict[str, str]) -> None:
    """Announce more than is sent, and hang up."""

    def body() -> Iterator[bytes]:
        yield content
        raise ConnectionAbortedError

    sent = {**CHUNK, "Upload-Offset": "0", "Content-Length": str(len(content) + 1), **headers}
    with pytest.raises(ConnectionAbortedError):
        live.client.patch(urlsplit(upload["upload_url"]).path, content=body(), headers=sent)


def test_a_dropped_file_gets_a_new_address(client: TestClient, upload: dict[str, Any], settings: Settings) -> None:
    send(client, upload, b"x" * 100)
    answer = client.delete(upload["upload_url"])
    assert (answer.status_code, answer.headers["tus-resumable"]) == (204, "1.0.0")
    assert client.head(upload["upload_url"]).status_code == 404
    assert [path for path in settings.scratch.rglob("upl_*") if path.is_file()] == []
    model = client.get(f"{MODELS}/{client.get(MODELS).json()['data'][0]['id']}").json()
    fresh = model["uploads"][WEIGHTS]
    assert (fresh["state"], fresh["path"], fresh["offset"]) == ("needed", upload["path"], 0)
    assert fresh["upload_url"] != upload["upload_url"]
    assert send(client, fresh, b"y").status_code == 204


def test_files_are_sent_in_parallel(client: TestClient) -> None:
    files = {f"model-{number:05}-of-00008.safetensors": os.urandom(2 << 20) for number in range(8)}
    model = begin(client, files)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(send(client, one, files[one["path"]]).status_code))
        for one in model["uploads"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [204] * 8
    shown = client.get(f"{MODELS}/{model['id']}").json()
    assert {one["state"] for one in shown["uploads"]} == {"present"}
