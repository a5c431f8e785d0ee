"""The command line without a network: exit codes, messages, where the address and the key come from."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.auth import authenticate
from service.cli import main
from service.client import Client, Unreachable
from service.commands import connect
from service.commands.show import comparison, size_of
from service.config import Settings, get_settings
from service.db import Database
from tests.servers import free_port
from tests.service.samples import FINDINGS

Handler = Callable[[httpx.Request], httpx.Response]

SIDE: dict[str, Any] = {
    "metrics": {"accuracy": {"value": 0.9, "low": 0.88, "high": 0.92}},
    "parameters": 2000,
    "nonzero_parameters": 2000,
    "size": 8000,
    "flops": 100,
    "peak_memory": None,
    "latency": [{"runtime": "onnxruntime", "batch_size": 1, "sequence_length": 128, "p50": 0.02, "p95": 0.03}],
}
SMALLER = SIDE | {"parameters": 1000, "latency": [SIDE["latency"][0] | {"p50": 0.01}]}


def job(status: str, **fields: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "id": "job_1", "name": "x", "status": status, "phase": None, "result": None, "error": None, "warnings": [],
        "progress": {"fraction": 1.0, "step": 3, "total_steps": 3, "seconds_remaining": None},
        "spec": {}, "links": {}, "queue": {"position": None},
        "created_at": "2026-01-01T00:00:00Z", "started_at": None, "finished_at": None,
    } | fields  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.client.time.sleep", lambda _: None)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Makes every command talk to a function."""

    def install(handler: Handler) -> None:
        monkeypatch.setenv("SECATEUR_URL", "http://service")
        monkeypatch.setenv("SECATEUR_API_KEY", "sct_key")
        transport = httpx.MockTransport(handler)
        monkeypatch.setattr(connect, "Client", lambda url, key: Client(url, key, transport=transport))

    return install


def code_of(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    ("status", "code"), [("succeeded", 0), ("failed", 3), ("rejected", 4), ("cancelled", 5)], ids=str
)
def test_watch_ends_with_the_jobs_own_code(answers: Callable[[Handler], None], status: str, code: int) -> None:
    answers(lambda _: httpx.Response(200, json=job(status)))
    assert code_of("jobs", "watch", "job_1") == code


@pytest.mark.parametrize(("status", "code"), [(404, 2), (401, 2), (422, 2), (500, 3), (503, 6)])
def test_refusals_and_faults_have_their_codes(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    fault = {"pointer": "/name", "detail": "shorter"}
    answers(lambda _: httpx.Response(status, json={"code": "WHY", "detail": "do this", "errors": [fault]}))
    assert code_of("jobs", "show", "job_1") == code
    assert capsys.readouterr().err == "error: do this (WHY)\n  /name: shorter\n"
    assert code_of("jobs", "show", "job_1", "--json") == code
    told = json.loads(capsys.readouterr().err)
    assert told == {"error": {"code": "WHY", "detail": "do this", "errors": [fault]}}


def test_a_service_that_does_not_answer_is_6(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    answers(handler)
    assert code_of("models", "list") == 6
    assert "http://service" in capsys.readouterr().err


def test_without_any_service_the_message_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("models", "list") == 6
    message = capsys.readouterr().err
    assert "secateur up" in message and "SECATEUR_URL" in message and "SECATEUR_API_KEY" in message


@pytest.mark.parametrize("arguments", [("jobs", "submit"), ("nonsense",), ("jobs", "list", "--limit", "0")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert code_of(*arguments) == 2


@pytest.mark.parametrize("content", ["not JSON", "[]"])
def test_a_spec_that_is_no_object_is_2(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.json").write_text(content)
    assert code_of("jobs", "submit", str(tmp_path / "spec.json")) == 2
    assert code_of("run", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")) == 2


# The gate


def test_submit_waits_and_writes_the_verdict(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers(lambda request: httpx.Response(202 if request.method == "POST" else 200, json=job("failed")))
    (tmp_path / "spec.json").write_text("{}")
    (tmp_path / "summary.md").write_text("before")
    assert code_of("jobs", "submit", "spec.json", "--wait", "--junit", "out/junit.xml", "--markdown", "summary.md") == 3
    assert '<testsuite name="x"' in (tmp_path / "out" / "junit.xml").read_text()
    assert (tmp_path / "summary.md").read_text().startswith("before\n### Secateur: x failed")
    assert "job_1 queued" in capsys.readouterr().err
    assert code_of("jobs", "submit", "spec.json") == 0, "without any of these it does not wait"


def test_markdown_may_take_the_place_of_the_tables(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lambda _: httpx.Response(200, json=job("cancelled")))
    assert code_of("jobs", "watch", "job_1", "--markdown", "-") == 5
    assert capsys.readouterr().out.startswith("\n### Secateur: x cancelled")
    assert code_of("jobs", "watch", "job_1", "--markdown", "-", "--json") == 2


def test_a_file_that_cannot_be_written_is_told_before_anything_is_queued(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers(lambda _: pytest.fail("nothing should be asked"))
    (tmp_path / "spec.json").write_text("{}")
    (tmp_path / "file").write_text("")
    assert code_of("jobs", "submit", "spec.json", "--junit", "file/junit.xml") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Events


def test_events_are_followed_line_by_line(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [{"id": f"evt_{n}", "time": "t", "level": "info", "type": "cut", "message": f"Cut {n}."} for n in (1, 2)]

    def handler(request: httpx.Request) -> httpx.Response:
        known = request.headers.get("last-event-id")
        left = [event for event in told if known is None or event["id"] > known]
        body = "".join(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n" for event in left)
        return httpx.Response(200 if left else 204, stream=httpx.ByteStream(body.encode()))

    monkeypatch.setattr("service.client.time.sleep", lambda seconds: None)
    answers(handler)
    assert code_of("jobs", "events", "job_1", "--follow", "--after", "evt_1") == 0
    assert capsys.readouterr().out.split() == ["t", "info", "cut", "Cut", "2."]
    assert code_of("jobs", "events", "job_1", "--follow", "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == told


# run


def run_with(tmp_path: Path, *options: str) -> int:
    """`secateur run` of a spec that names its model."""
    (tmp_path / "spec.json").write_text('{"name": "x", "model_id": "mdl_1"}')
    return code_of("run", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out"), *options)


def test_run_tells_why_a_job_failed_and_fetches_nothing(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = {"code": "OUT_OF_MEMORY", "message": "Use a smaller batch.", "blame": "user", "retryable": False}
    answers(lambda request: httpx.Response(202 if request.method == "POST" else 200, json=job("failed", error=error)))
    assert run_with(tmp_path) == 3
    assert "Use a smaller batch. (OUT_OF_MEMORY)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_the_job_alone_and_says_so(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.method == "GET":
            raise KeyboardInterrupt
        return httpx.Response(202, json=job("queued"))

    answers(handler)
    assert run_with(tmp_path) == 130
    assert "secateur jobs watch job_1" in capsys.readouterr().err
    assert asked == ["/v1/jobs", "/v1/jobs/job_1"]


def test_run_needs_a_model(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    assert code_of("run", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")) == 2


# models inspect


def found(**fields: Any) -> dict[str, Any]:
    """An inspection that has ended."""
    return job("succeeded", kind="inspection", inspection=FINDINGS) | fields


def test_inspect_prints_the_jobs_id_and_sends_what_was_asked_for(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(202, json=job("queued"))

    answers(handler)
    assert code_of("models", "inspect", "mdl_1") == 0
    assert capsys.readouterr().out == "job_1\n"
    (tmp_path / "spec.json").write_text('{"ratios": [0.5]}')
    assert code_of("models", "inspect", "mdl_1", "--dataset", "ds_1", "--spec", "spec.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "job_1"
    path = "/v1/models/mdl_1/inspections"
    assert asked == [("POST", path, {}), ("POST", path, {"ratios": [0.5], "dataset_id": "ds_1"})]


def test_inspect_waits_shows_what_was_found_and_keeps_the_page(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/report"):
            return httpx.Response(200, text="<html>")
        return (
            httpx.Response(202, json=job("queued")) if request.method == "POST" else httpx.Response(200, json=found())
        )

    answers(handler)
    assert code_of("models", "inspect", "mdl_1", "--report", "page.html") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Nothing", "stands", "out."]
    assert lines[-1] == ["layers", "magnitude", "50%", "0", "of", "1", "0.0%", "0.5", "100.0%"]
    assert (tmp_path / "page.html").read_text() == "<html>"
    assert code_of("models", "inspect", "mdl_1", "--wait", "--json") == 0
    assert json.loads(capsys.readouterr().out)["inspection"] == FINDINGS


def test_an_inspection_that_failed_ends_as_a_failed_job(answers: Callable[[Handler], None]) -> None:
    ended = found(status="failed", inspection=None)
    answers(lambda request: httpx.Response(202 if request.method == "POST" else 200, json=ended))
    assert code_of("models", "inspect", "mdl_1", "--wait", "--report", "page.html") == 3


# Address and key


def test_a_local_service_is_found_by_its_data_directory(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://127.0.0.1:8400\n")
    (tmp_path / "api-key").write_text("sct_local\n")
    assert connect.address(Settings(data_dir=tmp_path)) == ("http://127.0.0.1:8400", "sct_local")


def test_the_environment_comes_first(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://127.0.0.1:8400")
    (tmp_path / "api-key").write_text("sct_local")
    given = Settings(data_dir=tmp_path, url="https://far", api_key=SecretStr("sct_far"))
    assert connect.address(given) == ("https://far", "sct_far")


def test_the_local_key_is_never_sent_to_another_address(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://127.0.0.1:8400")
    (tmp_path / "api-key").write_text("sct_local")
    with pytest.raises(Unreachable, match="SECATEUR_API_KEY"):
        connect.address(Settings(data_dir=tmp_path, url="https://far"))


# The parts of a deployment


@pytest.fixture
def told_database(monkeypatch: pytest.MonkeyPatch, database_url: str) -> str:
    """A migrated database that the commands are told of."""
    monkeypatch.setenv("SECATEUR_DATABASE_URL", database_url)
    return database_url


@pytest.mark.parametrize("as_json", [False, True])
def test_a_created_key_works_for_its_tenant_and_scopes(
    told_database: str, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    options = ["--tenant", "search", "--scope", "write", "--days", "7", *(["--json"] if as_json else [])]
    assert code_of("keys", "create", *options) == 0
    out = capsys.readouterr().out
    plaintext = json.loads(out)["key"] if as_json else out.strip()
    database = Database(told_database)
    with database.session_scope() as session:
        principal = authenticate(session, f"Bearer {plaintext}")
    database.dispose()
    assert (principal.tenant, principal.scopes) == ("search", frozenset({"read", "write"}))


def test_api_beyond_this_machine_needs_a_key(told_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("api", "--host", "0.0.0.0") == 2
    assert "secateur keys create" in capsys.readouterr().err


@pytest.mark.parametrize("empty_url", ["sqlite", "postgresql"], indirect=True)
def test_api_without_tables_says_how_to_make_them(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECATEUR_DATABASE_URL", empty_url)
    assert code_of("api") == 3
    assert "secateur migrate" in capsys.readouterr().err


def test_api_whose_database_does_not_answer_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECATEUR_DATABASE_URL", f"postgresql://127.0.0.1:{free_port()}/secateur")
    assert code_of("api") == 3
    told = capsys.readouterr().err
    assert "does not answer" in told and "secateur migrate" not in told


def test_worker_becomes_celery_with_one_job_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: seen.append([program, *words]))
    assert code_of("worker") == 0
    program, *words = seen[0]
    assert program == sys.executable
    assert words[1:6] == ["-m", "celery", "-A", "workers.app", "worker"]
    assert "--concurrency=1" in words


# What is shown


def test_before_and_after_are_compared_line_by_line() -> None:
    rows = {what: rest for what, *rest in comparison({"before": SIDE, "after": SMALLER})}
    assert rows["accuracy"] == ["0.9000 [0.8800, 0.9200]", "0.9000 [0.8800, 0.9200]", "+0.0000"]
    assert rows["parameters"] == ["2,000", "1,000", "2.00 x smaller"]
    assert rows["onnxruntime p50, batch 1 x 128"] == ["20.00 ms", "10.00 ms", "2.00 x faster"]
    assert "peak_memory" not in rows, "it was not measured"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (90_855_944, "90.9 MB"), (2e12, "2.0 TB")])
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size_of(count) == text


@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        (["pause", "job_1"], "pause", None),
        (["resume", "job_1"], "resume", None),
        (["retry", "job_1", "--from-start"], "retry", {"from": "start"}),
        (["clone", "job_1"], "clone", {}),
    ],
)
def test_a_job_is_asked_from_the_command_line(
    answers: Callable[[Handler], None], capsys: pytest.CaptureFixture[str], command: list[str], path: str, body: Any
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/v1/jobs/job_1/{path}"
        assert (json.loads(request.content) if request.content else None) == body
        return httpx.Response(200, json=job("paused"))

    answers(handler)
    assert code_of("jobs", *command) == 0
    shown = capsys.readouterr()
    assert shown.out == ("job_1\n" if path == "clone" else "")
    assert shown.err == ("" if path == "clone" else "job_1 paused\n")
