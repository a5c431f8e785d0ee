"""No secret reaches a log line."""

import io
import json
import logging
import logging.config
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import logs
from service.auth import new_plaintext
from service.config import Settings
from service.db import Database
from service.logs import ACCESS, JsonFormatter, RedactingFormatter, configuration, redact
from tests.live import LiveService
from tests.service.samples import TENANT, a_model, a_spec, store


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:hunter2@db/x", "postgresql://user:…@db/x"),
        ("redis://:hunter2@host:6379/0", "redis://:…@host:6379/0"),
        ("{'authorization': 'Bearer hunter2'}", "{'authorization': 'Bearer …'}"),
        ("Authorization: Basic aHVudGVyMg==", "Authorization: Basic …"),
        ('1.2.3.4:5 - "GET /v1/jobs?name=hunter2&limit=1 HTTP/1.1" 200', '1.2.3.4:5 - "GET /v1/jobs?… HTTP/1.1" 200'),
        ("signed with whsec_aGVsbG8+d29ybGQ/aGVsbG8=.", "signed with whsec_…."),
        ("http://127.0.0.1:8400/v1/jobs took 3:4 s", "http://127.0.0.1:8400/v1/jobs took 3:4 s"),
    ],
)
def test_secrets_are_cut_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_tracebacks_and_arguments_are_covered() -> None:
    key, stream = new_plaintext(), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(f"bad key {key}")
    except ValueError:
        logger.exception("while reading %s", key)
    secret = key.split("_")[2]
    assert secret not in stream.getvalue()
    assert key.split("_")[1] in stream.getvalue(), "the public part tells which key it was"
    assert "Traceback" in stream.getvalue()


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, set back afterwards with those that a configuration makes quiet."""
    root = logging.getLogger()
    before, levels = list(root.handlers), {name: logging.getLogger(name).level for name in ("", ACCESS, *_QUIET)}
    yield root
    root.handlers[:] = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


_QUIET = ("uvicorn.access", "httpcore")


def test_the_configuration_is_one_that_logging_takes(root: logging.Logger) -> None:
    logging.config.dictConfig(configuration("warning"))
    assert isinstance(root.handlers[0].formatter, RedactingFormatter)
    assert root.level == logging.WARNING


# JSON


class Stream(io.StringIO):
    """What was logged."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """One object per line."""
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def stream(root: logging.Logger) -> Stream:
    """Everything that is logged from now on, as JSON."""
    stream = Stream()
    logging.config.dictConfig(configuration("info", "json"))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root.handlers[:] = [handler]
    return stream


def test_a_record_is_an_object_that_says_what_it_is_about(stream: Stream) -> None:
    log = logging.getLogger("test")
    with logs.about(request_id="req_1"):
        thread = threading.Thread(target=lambda: logs.note(tenant="unseen"))
        thread.start()
        thread.join()
        with logs.about(job_id="job_1", attempt=2):
            logs.note(tenant="t")
            log.warning("two\nlines of %s", "text")
    log.info("outside")
    inside, outside = stream.lines
    assert inside.pop("time").endswith("+00:00")
    assert inside == {
        "level": "WARNING",
        "logger": "test",
        "message": "two\nlines of text",
        "request_id": "req_1",
        "job_id": "job_1",
        "attempt": 2,
        "tenant": "t",
    }
    assert outside.keys() == {"time", "level", "logger", "message"}


def test_no_secret_stays_and_no_redaction_breaks_the_quoting(stream: Stream) -> None:
    key = new_plaintext()
    with logs.about(url="redis://:hunter2@host", object=Exception(key)):
        try:
            raise ValueError(f'{{"authorization": "Bearer {key}\\"}}')
        except ValueError:
            logging.getLogger("test").exception('"a://b", "c:hunter2@d"')
    (line,) = stream.lines
    assert key.split("_")[2] not in stream.getvalue() and "hunter2@host" not in stream.getvalue()
    assert "Traceback" in line["exception"]


def test_every_request_has_a_line(client: TestClient, stream: Stream, api_key: str) -> None:
    answer = client.get("/v1/jobs/job_unknown?secret=hunter2", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 404
    (line,) = [line for line in stream.lines if line["logger"] == ACCESS]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/jobs/{job_id}", 404)
    assert (line["request_id"], line["tenant"]) == ("mine-1", TENANT)
    assert line["key_id"].startswith("key_") and line["ms"] > 0
    assert "hunter2" not in str(line) and api_key.split("_")[2] not in stream.getvalue()


def test_text_leaves_requests_to_the_servers_own_lines(client: TestClient, root: logging.Logger) -> None:
    logging.config.dictConfig(configuration("info"))
    stream = Stream()
    root.handlers[:] = [logging.StreamHandler(stream)]
    client.get("/v1/jobs")
    assert "GET" not in stream.getvalue().replace("HTTP Request: GET", "")


def test_a_jobs_lines_in_the_workers_log_name_its_request(settings: Settings, database: Database, api_key: str) -> None:
    model = store(database, a_model())
    with LiveService(settings.model_copy(update={"log_format": "json"}), api_key) as service:
        service.start_api()
        service.start_worker()
        made = service.client.post("/v1/jobs", json=a_spec(model.id), headers={"X-Request-Id": "traced-1"}).json()
        service.wait_for(lambda: _status(service, made["id"]) == "failed", "the job")
        api, worker = ((service.logs / f"{name}.log").read_text() for name in ("api", "worker"))
    assert api_key.split("_")[2] not in api + worker
    asked = [line for line in map(json.loads, api.splitlines()) if line.get("request_id") == "traced-1"]
    assert [(line["route"], line["status"]) for line in asked] == [("/v1/jobs", 202)]
    objects = [json.loads(line) for line in worker.splitlines() if line.startswith("{")]
    assert "[config]" not in worker, "no banner stands between the objects"
    done = [line for line in objects if line.get("request_id") == "traced-1"]
    assert done
    assert {(line["job_id"], line["attempt"], line["tenant"]) for line in done} == {(made["id"], 1, TENANT)}


def _status(service: LiveService, job_id: str) -> str:
    status: str = service.client.get(f"/v1/jobs/{job_id}").json()["status"]
    return status
