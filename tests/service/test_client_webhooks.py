"""Webhooks by the Python client and by the command line, against the application itself."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.cli import main
from service.client import Client
from service.commands import connect
from service.config import get_settings
from service.errors import Conflict, NotFound
from tests.service.test_client import async_invoke, sync_invoke

URL = "https://93.184.215.14/in"


def passing_on(app: TestClient) -> Callable[[httpx.Request], httpx.Response]:
    """A handler that hands requests to the application."""

    def handler(request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name not in ("authorization", "host")}
        path = request.url.raw_path.decode()
        answer = app.request(request.method, path, content=request.content, headers=headers)
        return httpx.Response(answer.status_code, content=answer.content)

    return handler


@pytest.mark.parametrize("invoke", [sync_invoke, async_invoke], ids=["sync", "async"])
def test_the_client_has_a_method_for_every_route(client: TestClient, invoke: Callable[..., Any]) -> None:
    def call(method: str, *arguments: Any, **named: Any) -> Any:
        return invoke(passing_on(client), method, *arguments, **named)

    made = call("create_webhook", URL, events=["job.failed"], description="pager")
    assert made["secret"]
    assert call("show_webhook", made["id"])["events"] == ["job.failed"]
    assert call("update_webhook", made["id"], enabled=False)["enabled"] is False
    with pytest.raises(Conflict):
        call("test_webhook", made["id"])
    assert call("update_webhook", made["id"], enabled=True, description="")["description"] == ""
    tested = call("test_webhook", made["id"])
    assert [row["id"] for row in call("webhook_deliveries", made["id"])] == [tested["id"]]
    assert call("webhook_deliveries", made["id"], job_id="job_1") == []
    assert call("redeliver_webhook", made["id"], tested["id"])["id"] == tested["id"]
    assert call("rotate_webhook_secret", made["id"])["secret"] != made["secret"]
    assert [row["id"] for row in call("list_webhooks")] == [made["id"]]
    assert call("create_webhook", None)["url"] is None
    call("delete_webhook", made["id"])
    with pytest.raises(NotFound):
        call("show_webhook", made["id"])


# Command line


@pytest.fixture
def secateur(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command that must succeed; returns what it printed on standard output."""
    get_settings.cache_clear()
    monkeypatch.setenv("SECATEUR_URL", "http://service")
    monkeypatch.setenv("SECATEUR_API_KEY", "sct_key")
    transport = httpx.MockTransport(passing_on(client))
    monkeypatch.setattr(connect, "Client", lambda url, key: Client(url, key, transport=transport))

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["webhooks", *arguments])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    yield run
    get_settings.cache_clear()


def test_every_command_does_what_it_says(secateur: Callable[..., str]) -> None:
    made = json.loads(secateur("create", URL, "--event", "job.failed", "--json"))
    assert made["events"] == ["job.failed"]
    endpoint = made["id"]
    assert secateur("create").startswith("whsec_")
    assert len(secateur("list").splitlines()) == 3
    assert URL in secateur("show", endpoint)
    assert "asked" in secateur("update", endpoint, "--disable", "--event", "job.started")
    assert json.loads(secateur("update", endpoint, "--enable", "--json"))["events"] == ["job.started"]
    delivery = secateur("test", endpoint).strip()
    assert delivery in secateur("deliveries", endpoint)
    assert secateur("deliveries", endpoint, "--job", "job_1", "--json") == "[]\n"
    assert json.loads(secateur("redeliver", endpoint, delivery, "--json"))["status"] == "pending"
    assert secateur("rotate-secret", endpoint).startswith("whsec_")
    secateur("delete", endpoint)
    assert endpoint not in secateur("list")
