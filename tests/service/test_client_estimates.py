"""Estimates by the Python client and by the command line, against the application itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.cli import main
from service.client import Client
from service.commands import connect
from service.config import get_settings
from service.db import Database
from service.errors import Invalid
from tests.service.samples import a_model, a_spec, a_worker, store
from tests.service.test_client import async_invoke, sync_invoke
from tests.service.test_client_webhooks import passing_on

SIZES = {"layers": 6, "hidden_size": 384, "attention_heads": [12] * 6, "ffn_width": [1536] * 6, "vocabulary": 30522}


@pytest.mark.parametrize("invoke", [sync_invoke, async_invoke], ids=["sync", "async"])
def test_the_client_asks_before_it_submits(client: TestClient, database: Database, invoke: Callable[..., Any]) -> None:
    model = store(database, a_model())
    found = invoke(passing_on(client), "estimate_job", a_spec(model.id))
    assert [reason["code"] for reason in found["reasons"]] == ["NO_WORKER"]
    with pytest.raises(Invalid):
        invoke(passing_on(client), "estimate_job", a_spec(model.id, task="nothing"))


def test_the_command_tells_it_in_words(
    client: TestClient,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    get_settings.cache_clear()
    monkeypatch.setenv("SECATEUR_URL", "http://service")
    monkeypatch.setenv("SECATEUR_API_KEY", "sct_key")
    transport = httpx.MockTransport(passing_on(client))
    monkeypatch.setattr(connect, "Client", lambda url, key: Client(url, key, transport=transport))
    model = store(database, a_model(structure=SIZES, parameters=22_713_986))
    store(database, a_worker("small"))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(a_spec(model.id)))

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["jobs", "estimate", str(spec), *arguments])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out, printed.err

    words, beside = run()
    assert "on cpu" in words and "fits        no" in words and "rough" in words
    assert "MEMORY_TOO_SMALL" in beside
    assert json.loads(run("--json")[0])["fits"] is False
    get_settings.cache_clear()
