"""What a job leaves behind, over HTTP."""

import hashlib
import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service import events, jobs
from service.db import Database
from service.routes.job_records import prefers_json, thin
from service.schemas import PointView
from service.tables import MetricPoint
from tests.databases import on_databases
from tests.service.published import FILES, publish
from tests.service.samples import submitted


def _app(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


@on_databases
def test_events_go_on_where_a_reader_stopped(client: TestClient, database: Database) -> None:
    job = submitted(database)
    with database.session_scope() as session:
        for number in range(5):
            events.emit(session, job.id, "pruning.cut", f"Cut {number}.", level="warning", data={"number": number})
    url = f"/v1/jobs/{job.id}/events"
    page = client.get(url, params={"limit": 2}).json()
    assert [event["type"] for event in page["data"]] == ["job.queued", "pruning.cut"]
    seen = page["data"]
    while page["next_cursor"]:
        assert page["next_cursor"] == seen[-1]["id"]
        page = client.get(url, params={"after": seen[-1]["id"], "limit": 2}).json()
        seen += page["data"]
    assert [event["data"].get("number") for event in seen] == [None, 0, 1, 2, 3, 4]
    assert seen[1]["level"] == "warning"
    assert client.get(url, params={"after": seen[-1]["id"]}).json() == {"data": [], "next_cursor": None}


@on_databases
def test_curves_are_of_the_latest_attempt_and_may_have_holes(client: TestClient, database: Database) -> None:
    job = submitted(database)
    with database.session_scope() as session:
        lost = jobs.claim(session, job.id, "w1", 60)
        assert lost is not None
        session.add(MetricPoint(job_id=job.id, token=lost.token, name="finetuning/loss", step=1, value=9.0))
        jobs.give_back(session, lost)
        latest = jobs.claim(session, job.id, "w2", 60)
        assert latest is not None
        for step in (1, 2, 10):
            value = None if step == 2 else step / 10
            session.add(MetricPoint(job_id=job.id, token=latest.token, name="finetuning/loss", step=step, value=value))
        session.add(MetricPoint(job_id=job.id, token=latest.token, name="baseline/loss", step=1, value=0.5))
    answer = client.get(f"/v1/jobs/{job.id}/metrics").json()
    assert [series["name"] for series in answer["data"]] == ["baseline/loss", "finetuning/loss"]
    points = answer["data"][1]["points"]
    assert [(point["step"], point["value"]) for point in points] == [(1, 0.1), (2, None), (10, 1.0)]
    one = client.get(f"/v1/jobs/{job.id}/metrics", params={"name": "finetuning/loss", "resolution": 2}).json()["data"]
    assert [[point["step"] for point in series["points"]] for series in one] == [[1, 10]]


@pytest.mark.parametrize(("count", "resolution", "left"), [(5, None, 5), (5, 9, 5), (100, 10, 10), (3, 2, 2)])
def test_thinning_keeps_both_ends(count: int, resolution: int | None, left: int) -> None:
    time = datetime.now(UTC)
    points = [PointView(step=step, time=time, value=0.0) for step in range(count)]
    steps = [point.step for point in thin(points, resolution)]
    assert len(steps) == left
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert sorted(set(steps)) == steps


def test_artifacts_are_listed_and_downloaded(client: TestClient, tmp_path: Path) -> None:
    published = publish(_app(client), tmp_path)
    rows = client.get(f"/v1/jobs/{published.job.id}/artifacts").json()["data"]
    assert [row["path"] for row in rows] == sorted(FILES)
    for row in rows:
        answer = client.get(row["content_url"])
        assert answer.content == FILES[row["path"]]
        digest = hashlib.sha256(answer.content).hexdigest()
        assert (row["sha256"], row["size"], answer.headers["etag"]) == (digest, len(answer.content), f'"{digest}"')
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"].startswith("attachment")


def test_a_download_resumes(client: TestClient, tmp_path: Path) -> None:
    published = publish(_app(client), tmp_path)
    artifact = published.artifacts["huggingface/model.safetensors"]
    url, content = f"/v1/artifacts/{artifact.id}/content", FILES["huggingface/model.safetensors"]
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
    part = client.get(url, headers={"Range": "bytes=100-", "If-Range": head.headers["etag"]})
    assert (part.status_code, part.content) == (206, content[100:])
    assert client.get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert client.get(url, headers={"If-None-Match": head.headers["etag"]}).status_code == 304


def test_the_model_of_a_job_is_a_tar_of_known_digest(client: TestClient, tmp_path: Path) -> None:
    published = publish(_app(client), tmp_path)
    url = f"/v1/jobs/{published.job.id}/model"
    head, answer = client.head(url), client.get(url)
    assert answer.headers["etag"] == head.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert head.headers["content-length"] == str(len(answer.content))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = archive.getnames()
        onnx = archive.extractfile("onnx/model.onnx")
        assert onnx is not None and onnx.read() == FILES["onnx/model.onnx"]
    assert sorted(names) == ["config.json", "model.safetensors", "onnx/model.onnx"]


def test_the_report_comes_as_html_or_json(client: TestClient, tmp_path: Path) -> None:
    published = publish(_app(client), tmp_path)
    url = f"/v1/jobs/{published.job.id}/report"
    page = client.get(url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.content == FILES["report/report.html"]
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "img-src data:" in policy and "script-src" not in policy
    assert page.headers["content-disposition"].startswith("inline")
    figures = client.get(url, headers={"Accept": "application/json"})
    assert figures.json() == {"report": True}
    assert figures.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("text/html, application/json;q=0.9", False),
        ("text/html;q=0.5, application/json;q=0.9", True),
        ("application/json;q=oops", True),
    ],
)
def test_accept_is_ranked(accept: str, expected: bool) -> None:
    assert prefers_json(accept) == expected


def test_a_job_without_a_result_has_no_model_and_no_report(client: TestClient, database: Database) -> None:
    job = submitted(database)
    for what in ("model", "report"):
        answer = client.get(f"/v1/jobs/{job.id}/{what}")
        assert (answer.status_code, answer.json()["code"], answer.json()["job_status"]) == (404, "NO_RESULT", "queued")


def test_bytes_that_are_gone_are_an_error_before_the_answer_starts(client: TestClient, tmp_path: Path) -> None:
    app = _app(client)
    published = publish(app, tmp_path)
    app.state.storage.delete_prefix(f"artifacts/{published.job.id}")
    artifact = published.artifacts["report/report.html"]
    for url in (f"/v1/jobs/{published.job.id}/model", f"/v1/artifacts/{artifact.id}/content"):
        assert client.get(url).status_code >= 500
