"""Webhook endpoints over HTTP, and webhooks from the order of a job to the receiver."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError
from starlette.testclient import TestClient

from service.app import create_app
from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.routes.webhooks import MOST_ENDPOINTS
from service.tables import Job, WebhookEndpoint, utc_now
from service.webhooks.addresses import Addresses
from service.webhooks.outbox import EVENTS
from tests.databases import on_databases
from tests.service.samples import a_model, a_spec, store
from tests.service.webhooks.conftest import at_loopback
from tests.service.webhooks.receiver import Receiver, receiver, status, wait_for

URL = "https://hooks.example/in"
ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    with receiver() as listening:
        yield listening


@pytest.fixture
def on_premises(settings: Settings, api_key: str) -> Iterator[TestClient]:
    """A client of an app that may send to this machine, under names of `example`, and is quick about it."""
    quick = {"webhook_seconds": 0.05, "webhook_retry_seconds": [0.05] * 3, "webhook_allow_private": True}
    app = create_app(settings.model_copy(update=quick))
    app.state.addresses = Addresses(allow_private=True, look_up=at_loopback)
    with TestClient(app, base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"}) as client:
        yield client


def create(client: TestClient, url: str | None = URL, **fields: Any) -> dict[str, Any]:
    """A new endpoint."""
    answer = client.post(ENDPOINTS, json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def deliveries(client: TestClient, endpoint_id: str) -> list[dict[str, Any]]:
    """What was sent to an endpoint, newest first."""
    rows: list[dict[str, Any]] = client.get(f"{ENDPOINTS}/{endpoint_id}/deliveries").json()["data"]
    return rows


@on_databases
def test_the_secret_is_shown_once(client: TestClient) -> None:
    answer = client.post(ENDPOINTS, json={"url": URL}, headers={"Idempotency-Key": "once"})
    created = answer.json()
    assert answer.headers["location"] == f"{ENDPOINTS}/{created['id']}"
    assert created["secret"].startswith("whsec_")
    assert (created["url"], created["events"], created["enabled"]) == (URL, list(EVENTS), True)
    shown = {name: value for name, value in created.items() if name != "secret"}
    assert client.get(f"{ENDPOINTS}/{created['id']}").json() == shown
    assert client.get(ENDPOINTS).json()["data"] == [shown]
    again = client.post(ENDPOINTS, json={"url": URL}, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["code"]) == (409, "IDEMPOTENCY_SECRET_NOT_KEPT")
    assert again.json()["endpoint_id"] == created["id"] and created["secret"] not in again.text
    assert len(client.get(ENDPOINTS).json()["data"]) == 1


@pytest.mark.parametrize(
    ("order", "pointer"),
    [
        ({}, "/url"),
        ({"url": 1}, "/url"),
        ({"url": ""}, "/url"),
        ({"url": "hooks.example/in"}, "/url"),
        ({"url": "ftp://hooks.example/in"}, "/url"),
        ({"url": "https:///in"}, "/url"),
        ({"url": "https://user@hooks.example/in"}, "/url"),
        ({"url": "https://user:word@hooks.example/in"}, "/url"),
        ({"url": "https://hooks.example/in#part"}, "/url"),
        ({"url": "https://hooks.example:22/in"}, "/url"),
        ({"url": "https://hooks.example:99999/in"}, "/url"),
        ({"url": "https://hooks.example\\@other.example/in"}, "/url"),
        ({"url": "https://hooks.example/a b"}, "/url"),
        ({"url": "https://hooks.example/\r\nX: y"}, "/url"),
        ({"url": "https://①②⑦.⓪.⓪.①/"}, "/url"),
        ({"url": "https://[fe80::1%25eth0]/"}, "/url"),
        ({"url": "https://hooks.example/" + "a" * 2048}, "/url"),
        ({"url": URL, "events": []}, "/events"),
        ({"url": URL, "events": ["job.queued"]}, "/events/0"),
        ({"url": URL, "events": ["job.failed", "job.failed"]}, "/events"),
        ({"url": URL, "description": "a\nb"}, "/description"),
        ({"url": URL, "secret": "whsec_mine"}, "/secret"),
    ],
)
def test_bad_orders_are_refused_at_their_field(client: TestClient, order: dict[str, Any], pointer: str) -> None:
    answer = client.post(ENDPOINTS, json=order)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_BODY")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert "word" not in answer.text


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/",
        "https://127.0.0.1/",
        "https://localhost:8443/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00:ec2::254]/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/",
    ],
)
def test_where_the_service_does_not_send_is_refused_everywhere(
    client: TestClient, database: Database, url: str
) -> None:
    store(database, model := a_model())
    endpoint = create(client, "https://93.184.215.14/")
    spec = a_spec(model.id, webhook_url=url)
    for answer, pointer in (
        (client.post(ENDPOINTS, json={"url": url}), "/url"),
        (client.patch(f"{ENDPOINTS}/{endpoint['id']}", json={"url": url}), "/url"),
        (client.post("/v1/jobs", json=spec), "/webhook_url"),
        (client.post("/v1/jobs?validate_only=true", json=spec), "/webhook_url"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "WEBHOOK_URL_REFUSED")
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert client.get("/v1/jobs").json()["data"] == []


def test_fields_change_one_by_one(client: TestClient) -> None:
    path = f"{ENDPOINTS}/{create(client)['id']}"
    assert client.patch(path, json={}).json()["url"] == URL
    changed = client.patch(path, json={"events": ["job.failed"], "description": "pager"}).json()
    assert (changed["events"], changed["description"], changed["url"]) == (["job.failed"], "pager", URL)
    off = client.patch(path, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "asked")
    assert client.post(f"{path}/test").json()["code"] == "WEBHOOK_ENDPOINT_DISABLED"
    on = client.patch(path, json={"enabled": True}).json()
    assert (on["enabled"], on["disabled_reason"]) == (True, None)
    assert client.patch(path, json={"url": None}).status_code == 422


@on_databases
def test_a_tenant_has_at_most_twenty(client: TestClient, database: Database) -> None:
    for _ in range(MOST_ENDPOINTS - 2):
        create(client)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post(ENDPOINTS, json={"url": URL}).status_code, range(6)))
    assert sorted(answers) == [201, 201, 409, 409, 409, 409]
    refused = client.post(ENDPOINTS, json={"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (409, "TOO_MANY_WEBHOOK_ENDPOINTS")
    with database.session_scope() as session:
        _, other = issue_key(session, tenant="other", name="o", scopes=["write"])
    bearer = {"Authorization": f"Bearer {other}"}
    assert client.post(ENDPOINTS, json={"url": URL}, headers=bearer).status_code == 201


def test_reading_needs_less_than_changing(client: TestClient, database: Database) -> None:
    path = f"{ENDPOINTS}/{create(client)['id']}"
    with database.session_scope() as session:
        _, reader = issue_key(session, tenant="default", name="r", scopes=["read"])
    bearer = {"Authorization": f"Bearer {reader}"}
    for allowed in (ENDPOINTS, path, f"{path}/deliveries"):
        assert client.get(allowed, headers=bearer).status_code == 200
    for method, denied in (
        ("POST", ENDPOINTS), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/test"),
        ("POST", f"{path}/rotate_secret"), ("POST", f"{path}/deliveries/wvd_1/redeliver"),
    ):  # fmt: skip
        answer = client.request(method, denied, headers=bearer, json={"url": URL})
        assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING"), (method, denied)


# From order to receiver


@on_databases
def test_a_test_is_sent_signed_and_its_delivery_told(on_premises: TestClient, receiving: Receiver) -> None:
    endpoint = create(on_premises, receiving.url)
    receiving.plan = [status(500)]
    queued = on_premises.post(f"{ENDPOINTS}/{endpoint['id']}/test", headers={"Idempotency-Key": "t"})
    assert (queued.status_code, queued.json()["status"], queued.json()["type"]) == (202, "pending", "webhook.test")
    replayed = on_premises.post(f"{ENDPOINTS}/{endpoint['id']}/test", headers={"Idempotency-Key": "t"})
    assert replayed.json() == queued.json()
    [request] = receiving.wait(1)
    payload = request.verified(endpoint["secret"])
    assert (payload["type"], payload["data"]["endpoint_id"]) == ("webhook.test", endpoint["id"])
    wait_for(lambda: deliveries(on_premises, endpoint["id"])[0]["status"] == "succeeded")
    [told] = deliveries(on_premises, endpoint["id"])
    assert told["event_id"] == request.event_id
    log = [(one["number"], one["response_status"], one["error"]) for one in told["attempts"]]
    assert log == [(1, 500, "refused"), (2, 204, None)]
    assert told["next_attempt_at"] is None and told["finished_at"]
    assert on_premises.get(f"{ENDPOINTS}/{endpoint['id']}").json()["failing_since"] is None


def test_a_rotated_secret_and_the_old_one_sign_for_a_day(
    on_premises: TestClient, database: Database, receiving: Receiver
) -> None:
    endpoint = create(on_premises, receiving.url)
    path = f"{ENDPOINTS}/{endpoint['id']}"
    rotated = on_premises.post(f"{path}/rotate_secret", headers={"Idempotency-Key": "r"})
    assert rotated.status_code == 200
    new = rotated.json()["secret"]
    assert new != endpoint["secret"]
    again = on_premises.post(f"{path}/rotate_secret", headers={"Idempotency-Key": "r"})
    assert (again.status_code, again.json()["code"]) == (409, "IDEMPOTENCY_SECRET_NOT_KEPT")
    assert again.json()["endpoint_id"] == endpoint["id"] and new not in again.text
    on_premises.post(f"{path}/test")
    request = receiving.wait(1)[0]
    assert request.verified(new) == request.verified(endpoint["secret"])
    with database.session_scope() as session:
        row = session.get_one(WebhookEndpoint, endpoint["id"])
        past = (utc_now() - timedelta(seconds=1)).isoformat()
        row.secrets = [row.secrets[0], {**row.secrets[1], "until": past}]
    on_premises.post(f"{path}/test")
    request = receiving.wait(2)[1]
    assert request.verified(new)
    with pytest.raises(WebhookVerificationError):
        request.verified(endpoint["secret"])


def test_a_delivery_is_sent_again_on_demand(on_premises: TestClient, receiving: Receiver) -> None:
    endpoint = create(on_premises, receiving.url)
    path = f"{ENDPOINTS}/{endpoint['id']}"
    receiving.plan = [status(500)] * 4
    on_premises.post(f"{path}/test")
    wait_for(lambda: deliveries(on_premises, endpoint["id"])[0]["status"] == "failed")
    [failed] = deliveries(on_premises, endpoint["id"])
    assert (len(failed["attempts"]), failed["next_attempt_at"]) == (4, None)
    again = on_premises.post(f"{path}/deliveries/{failed['id']}/redeliver")
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    [request] = receiving.wait(1)
    assert request.event_id == failed["event_id"]
    wait_for(lambda: deliveries(on_premises, endpoint["id"])[0]["status"] == "succeeded")
    other = create(on_premises, receiving.url)
    crossed = on_premises.post(f"{ENDPOINTS}/{other['id']}/deliveries/{failed['id']}/redeliver")
    assert crossed.status_code == 404
    assert on_premises.delete(path).status_code == 204
    assert on_premises.get(f"{path}/deliveries").status_code == 404


@on_databases
def test_a_job_tells_its_own_url_signed_with_the_secret_of_the_endpoint_without_one(
    on_premises: TestClient, database: Database, receiving: Receiver
) -> None:
    store(database, model := a_model())
    secret = create(on_premises, None)["secret"]
    spec = a_spec(model.id, webhook_url=receiving.url, metadata={"team": "search"})
    job = on_premises.post("/v1/jobs", json=spec).json()
    assert job["configuration"]["webhook_url"] == job["spec"]["webhook_url"] == receiving.url
    checked = on_premises.post("/v1/jobs?validate_only=true", json=spec).json()
    assert checked["configuration"] == job["configuration"]
    with database.session_scope(read_only=True) as session:  # the engine and its reports get the rest without it
        assert "webhook_url" not in session.get_one(Job, job["id"]).configuration
    on_premises.post(f"/v1/jobs/{job['id']}/cancel")
    [request] = receiving.wait(1)
    payload = request.verified(secret)
    assert (payload["type"], payload["data"]["id"]) == ("job.cancelled", job["id"])
    assert payload["data"]["metadata"] == {"team": "search"}
    [endpoint] = on_premises.get(ENDPOINTS).json()["data"]
    assert endpoint["url"] is None
    [told] = deliveries(on_premises, endpoint["id"])
    assert (told["job_id"], told["url"]) == (job["id"], receiving.url)
    path = f"{ENDPOINTS}/{endpoint['id']}"
    assert on_premises.get(f"{path}/deliveries", params={"job_id": "job_other"}).json()["data"] == []
    for answer in (on_premises.post(ENDPOINTS, json={"url": None}), on_premises.post(f"{path}/test")):
        assert answer.status_code == 409
    assert on_premises.patch(path, json={"url": URL}).json()["code"] == "WEBHOOK_ENDPOINT_OF_JOBS"


def test_the_first_job_with_a_url_makes_the_endpoint_that_signs_for_it(client: TestClient, database: Database) -> None:
    store(database, model := a_model())
    answer = client.post("/v1/jobs", json=a_spec(model.id, webhook_url="https://93.184.215.14/in?key=1"))
    assert answer.status_code == 202
    [endpoint] = client.get(ENDPOINTS).json()["data"]
    assert endpoint["url"] is None
    assert client.post(f"{ENDPOINTS}/{endpoint['id']}/rotate_secret").json()["secret"].startswith("whsec_")


def test_the_document_describes_every_webhook(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["webhooks"]) == set(EVENTS)
    changes = document["components"]["schemas"]["WebhookEndpointChanges"]["properties"]
    assert all("default" not in field for field in changes.values())
    payload = document["components"]["schemas"]["WebhookPayload"]
    assert set(payload["required"]) == {"type", "timestamp", "data"}
