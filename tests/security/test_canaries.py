"""Secrets of the operator and of clients, sown everywhere, are in no answer and in no line of any log."""

import contextlib
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from redis import Redis

from service.auth import new_plaintext
from service.config import Settings
from service.embedded import EmbeddedBroker
from tests.live import LiveService, kill_tree
from tests.processes import wait_for
from tests.servers import PostgreSQL
from tests.service.routes.test_models import MODELS
from tests.service.samples import a_spec
from tests.uploads import bert_files, form, tar

DATABASE, BROKER = "canaryDatabase5e1f", "canaryBroker77aa"
SENT = "canary-sent-0c3d"
"""With hyphens, as a field's name that could be a mistyped one of ours is pointed at by name."""
HEADERS = "X-Api-Key Cookie Referer User-Agent X-Forwarded-For Proxy-Authorization From Accept".split()


@pytest.fixture
def guarded_broker(valkey_server: EmbeddedBroker) -> Iterator[str]:
    """URL of a broker that asks for a password."""
    with Redis(unix_socket_path=str(valkey_server.socket)) as client:
        client.flushall()
        client.config_set("requirepass", BROKER)
        try:
            yield valkey_server.url.replace("://", f"://:{BROKER}@", 1)
        finally:
            client.config_set("requirepass", "")


@pytest.fixture(params=["text", "json"])
def sown(
    request: pytest.FixtureRequest,
    settings: Settings,
    postgresql_server: PostgreSQL,
    postgresql_template: str,
    guarded_broker: str,
) -> Iterator[LiveService]:
    """An API and a worker whose secrets are canaries; the chattiest logs."""
    name = postgresql_server.create(postgresql_template)
    url = postgresql_server.url(name).replace("postgres@", f"postgres:{DATABASE}@")
    changes = {"database_url": SecretStr(url), "broker_url": SecretStr(guarded_broker), "log_format": request.param}
    changes |= {"admin_key": SecretStr(new_plaintext()), "log_level": "DEBUG"}
    settings = settings.model_copy(update=changes)
    with LiveService(settings, settings.admin_key.get_secret_value()) as service:  # type: ignore[union-attr]
        service.start_api()
        service.start_worker()
        yield service
    postgresql_server.drop(name)


def _requests(client: httpx.Client) -> Iterator[httpx.Response]:
    """Canaries in headers, queries, names of files, and values of bodies and configs, where they are refused."""
    json_type = {"Content-Type": "application/json"}
    for name in HEADERS:
        yield client.get("/v1/jobs", headers={name: SENT})
        yield client.post("/v1/jobs", content=b"{", headers={name: SENT} | json_type)
    yield client.get("/v1/jobs", headers={"Authorization": f"Bearer {SENT}"})
    yield client.get("/v1/jobs", headers={"Authorization": f"Basic {SENT}"})
    for name in ("limit", "cursor", "status", "created_after", "name", "metadata[a]", SENT):
        yield client.get("/v1/jobs", params={name: SENT})
    for field in a_spec():
        yield client.post("/v1/jobs", json=a_spec() | {field: {SENT: SENT}})
    yield client.post("/v1/jobs", json=a_spec() | {SENT: SENT})
    yield client.post("/v1/jobs", json=a_spec() | {"webhook_url": f"https://u:{SENT}@127.0.0.1/{SENT}"})
    yield client.post("/v1/jobs", content=f'{{"name": "{SENT}'.encode(), headers=json_type)
    yield client.post("/v1/webhook_endpoints", json={"url": f"https://127.0.0.1/{SENT}"})
    yield client.post("/v1/keys", json={"name": SENT, "scopes": [SENT]})
    yield client.post(MODELS, json={"files": [{"path": "a", "size": 1, "sha256": SENT}]})
    for key in ("vocab_size", "hidden_act", "hidden_size", "auto_map"):
        config = json.loads(bert_files()["config.json"]) | {key: SENT}
        body, kind = form({"file": tar(bert_files() | {"config.json": json.dumps(config).encode()})})
        yield client.post(MODELS, content=body.replace(b'"f"', f'"{SENT}"'.encode()), headers={"Content-Type": kind})
    yield client.post(MODELS, content=SENT.encode(), headers={"Content-Type": "application/zip"})
    body, kind = form({"train": f'{{"text": "{SENT}", "label": {SENT}}}'.encode()})
    query = {"name": "a", "task": "text-classification"}
    yield client.post("/v1/datasets", params=query, content=body, headers={"Content-Type": kind})


def _spoken(answer: httpx.Response) -> str:
    return urllib.parse.unquote(f"{answer.headers} {answer.text}")


def test_no_canary_sings(sown: LiveService) -> None:
    secrets = [DATABASE, BROKER, sown.api_key, sown.api_key.split("_")[2]]
    answers = list(_requests(sown.client))
    assert len(answers) > 35
    for answer in answers:
        assert not [canary for canary in [*secrets, SENT] if canary in _spoken(answer)], answer.text
    hook = sown.client.post("/v1/webhook_endpoints", json={"url": "https://example.com/hook"}).json()
    for path in ("/readyz", "/metrics", "/v1/capabilities", "/v1/keys", "/v1/audit", "/v1/tenant", "/openapi.json"):
        answer = sown.client.get(path)
        assert answer.status_code == 200, answer.text
        assert not [canary for canary in [*secrets, hook["secret"]] if canary in _spoken(answer)], path
    assert hook["secret"] not in sown.client.get(f"/v1/webhook_endpoints/{hook['id']}").text
    logged = "".join(file.read_text() for file in sown.logs.glob("*.log"))
    assert "/v1/jobs" in logged and "celery" in logged
    assert not [canary for canary in [*secrets, SENT, hook["secret"]] if canary in logged]


def _complains(log: Path) -> bool:
    return any(word in log.read_text() for word in ("127.0.0.1", "does not answer", "is away"))


def test_a_service_whose_database_and_broker_are_away_tells_no_password(settings: Settings) -> None:
    urls = {
        "database_url": SecretStr(f"postgresql+psycopg://u:{DATABASE}@127.0.0.1:1/x"),
        "broker_url": SecretStr(f"redis://:{BROKER}@127.0.0.1:1/0"),
        "admin_key": SecretStr(new_plaintext()),
        "log_level": "DEBUG",
    }
    lost = LiveService(settings.model_copy(update=urls), new_plaintext())
    for part in ("api", "worker"):
        process, log = lost.launch(part), lost.logs / f"{part}.log"
        wait_for(partial(_complains, log), 60)
        with contextlib.suppress(subprocess.TimeoutExpired):  # what else it has to say
            process.wait(2)
        kill_tree(process)
        logged = log.read_text()
        assert not [canary for canary in (DATABASE, BROKER, lost.environment["SECATEUR_ADMIN_KEY"]) if canary in logged]
