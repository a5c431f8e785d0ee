"""What the tab key gives: commands, options, ids of what a service holds; nothing, quickly, where there is none."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from service.commands import completion
from service.config import get_settings

BODIES = {
    "/v1/jobs": b'{"data": [{"id": "job_1", "name": "half", "status": "running"}, {"id": "job_2", "name": "x"}]}',
    "/v1/models": b'{"data": [{"id": "mdl_1", "name": "encoder", "state": "ready"}]}',
    "/v1/datasets": b"not JSON",
}


class Handler(BaseHTTPRequestHandler):
    """Answers lists, to whoever has the key; models late."""

    delay = 0.0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = self.headers.get("authorization") == "Bearer sct_key" and path in BODIES
        time.sleep(self.delay if path == "/v1/models" else 0)
        body = BODIES[path] if known else b"{}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """A service that can only list."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def completed(words: str, **settings: str) -> list[str]:
    """What bash would offer for the last of these words."""
    environment = {"PATH": os.defpath, "_SECATEUR_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment |= {"COMP_CWORD": str(len(words.split(" ")) - 1)} | settings
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'secateur'; from service.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_and_ids(url: str) -> None:
    service = {"SECATEUR_URL": url, "SECATEUR_API_KEY": "sct_key"}
    assert completed("secateur jobs wa") == ["watch"]
    assert "--junit" in completed("secateur jobs watch --j")
    assert completed("secateur jobs show ", **service) == ["job_1", "job_2"]
    assert completed("secateur jobs pause job_2", **service) == ["job_2"]
    assert completed("secateur models show mdl_", **service) == ["mdl_1"]


@pytest.fixture
def told(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This process's settings name the service."""
    monkeypatch.setenv("SECATEUR_URL", url)
    monkeypatch.setenv("SECATEUR_API_KEY", "sct_key")
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


def test_an_id_comes_with_its_name_and_state(told: pytest.MonkeyPatch) -> None:
    assert completion.ids_of("jobs")("job_1") == [("job_1", "half running")]


@pytest.mark.parametrize(
    ("name", "value"),
    [("SECATEUR_API_KEY", "sct_wrong"), ("SECATEUR_URL", "http://127.0.0.1:1"), ("SECATEUR_URL", "x")],
)
def test_nothing_is_offered_where_the_service_does_not_answer(told: pytest.MonkeyPatch, name: str, value: str) -> None:
    told.setenv(name, value)
    assert completion.ids_of("jobs")("") == []


def test_an_answer_that_is_none_offers_nothing(told: pytest.MonkeyPatch) -> None:
    assert completion.ids_of("datasets")("") == []


def test_a_slow_service_is_not_waited_for(told: pytest.MonkeyPatch) -> None:
    told.setattr(Handler, "delay", 3.0)
    begun = time.monotonic()
    assert completion.ids_of("models")("") == []
    assert time.monotonic() - begun < 2.0
