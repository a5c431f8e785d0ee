"""Limits, usage, keys and the audit log by the Python client and by the command line, against the application."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.auth import parse
from service.cli import main
from service.client import Client
from service.commands import connect
from service.config import Settings, get_settings
from service.errors import Conflict, TooManyRequests
from service.ids import new_id
from tests.databases import on_databases
from tests.service.test_client import Invoke, async_invoke, problem, sync_invoke
from tests.service.test_client_webhooks import passing_on


@pytest.fixture(params=[sync_invoke, async_invoke], ids=["sync", "async"])
def call(request: pytest.FixtureRequest, client: TestClient) -> Callable[..., Any]:
    """Calls a method of either client."""
    invoke: Invoke = request.param
    return lambda method, *arguments, **named: invoke(passing_on(client), method, *arguments, **named)


def test_the_client_has_a_method_for_every_route(call: Callable[..., Any], api_key: str) -> None:
    assert call("show_tenant")["usage"]["queued_jobs"] == 0
    made = call("create_key", "ci", ["read"], expires_in=60)
    assert made["expires_at"] and made["key"]
    assert call("list_audit", action="key.create")[0]["target"] == made["id"]
    assert call("list_audit", key_id="key_none") == call("list_audit", created_after="2999-01-01T00:00:00Z") == []
    with pytest.raises(Conflict):
        call("delete_key", parse(api_key))


@pytest.mark.parametrize("invoke", [sync_invoke, async_invoke], ids=["sync", "async"])
def test_a_client_that_asks_too_fast_waits_as_long_as_it_is_told(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("service.client.time.sleep", waits.append)
    monkeypatch.setattr("service.client.asyncio.sleep", sleep)
    answers = iter([problem(429, code="RATE_LIMITED", retry_after=7), httpx.Response(200, json={"id": "job_1"})])
    assert invoke(lambda _: next(answers), "show_job", "job_1") == {"id": "job_1"}
    assert waits == [7.0]
    with pytest.raises(TooManyRequests):  # a full queue may stay full: the caller decides
        invoke(lambda _: problem(429, code="QUOTA_EXCEEDED", retry_after=30), "submit_job", {})
    assert waits == [7.0]


# Command line


@pytest.fixture
def secateur(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command; returns what it printed, or fails with its exit code in front where it ended with one."""
    get_settings.cache_clear()
    assert isinstance(settings.database_url, SecretStr)
    monkeypatch.setenv("SECATEUR_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("SECATEUR_URL", "http://service")
    monkeypatch.setenv("SECATEUR_API_KEY", "sct_key")
    transport = httpx.MockTransport(passing_on(client))
    monkeypatch.setattr(connect, "Client", lambda url, key: Client(url, key, transport=transport))

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        printed = capsys.readouterr()
        assert not ended.value.code, (ended.value.code, printed.err)
        return printed.out

    yield run
    get_settings.cache_clear()


@on_databases
def test_limits_are_set_shown_and_taken_back(secateur: Callable[..., str]) -> None:
    limits = ("--stored-bytes", "1000", "--queued-jobs", "3", "--running-jobs", "0", "--requests-per-minute", "600")
    shown = json.loads(secateur("tenants", "set", "default", *limits, "--json"))
    assert shown["limits"] == {
        "stored_bytes": 1000, "queued_jobs": 3, "running_jobs": 0, "requests_per_minute": 600,
    }  # fmt: skip
    assert shown["usage"]["stored_bytes"] == 0
    assert json.loads(secateur("usage", "--json"))["limits"] == shown["limits"]
    changed = json.loads(
        secateur("tenants", "set", "default", "--queued-jobs", "4", "--default", "stored-bytes", "--json")
    )
    assert changed["limits"] == {**shown["limits"], "queued_jobs": 4, "stored_bytes": None}
    assert "none" in secateur("tenants", "show", "default")
    listed = json.loads(secateur("tenants", "list", "--json"))
    assert listed == [{"name": "default", **changed["limits"]}]
    entry = json.loads(secateur("audit", "--action", "tenant.update", "--limit", "1", "--json"))[0]
    assert (entry["key_id"], entry["target"]) == ("command-line", "default")
    assert entry["data"] == {"running_jobs": 0, "requests_per_minute": 600, "queued_jobs": 4}


@pytest.mark.parametrize("arguments", [(), ("--queued-jobs", "1", "--default", "queued-jobs"), ("--queued-jobs", "-1")])
def test_a_change_that_says_nothing_or_too_much_is_refused(
    secateur: Callable[..., str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(AssertionError, match="2"):
        secateur("tenants", "set", "default", *arguments)
    assert "none" in secateur("tenants", "show", "default")


def test_keys_are_listed_and_revoked(secateur: Callable[..., str]) -> None:
    made = json.loads(secateur("keys", "create", "--scope", "read", "--name", "ci", "--json"))
    listed = secateur("keys", "list")
    assert made["id"] in listed and "ci" in listed and made["key"] not in listed
    secateur("keys", "delete", made["id"])
    rows = {row["id"]: row for row in json.loads(secateur("keys", "list", "--json"))}
    assert rows[made["id"]]["revoked_at"]
    log = secateur("audit", "--target", made["id"])
    assert "key.create" in log and "command-line" in log and "key.delete" in log
    with pytest.raises(AssertionError, match="2"):
        secateur("keys", "delete", new_id("key"))
