"""Token buckets, the headers that tell of them, and wrong keys."""

import pytest
from starlette.testclient import TestClient

from service.auth import issue_key, new_plaintext
from service.config import Settings
from service.db import Database
from service.errors import TooManyRequests
from service.rates import Buckets, Rates
from service.tables import Tenant
from tests.databases import on_databases
from tests.service.samples import TENANT, store


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limited(database: Database, per_minute: int) -> None:
    """Let each key of the tenant ask so often."""
    store(database, Tenant(name=TENANT, limits={"requests_per_minute": per_minute}))


@pytest.mark.parametrize("quota", [1, 3, 7, 60, 600, 997])
def test_a_bucket_gives_its_quota_at_once_and_then_one_token_at_a_time(quota: int) -> None:
    clock = Clock()
    buckets = Buckets(clock)
    taken = [buckets.take("key", quota) for _ in range(quota)]
    assert [one.remaining for one in taken] == list(range(quota - 1, -1, -1))
    assert all(one.wait is None for one in taken)
    refused = buckets.take("key", quota)
    assert refused.wait is not None
    assert refused.wait == pytest.approx(60 / quota)
    assert refused.full_in == pytest.approx(60)
    assert refused.remaining == 0
    clock.now += refused.wait
    assert buckets.take("key", quota).wait is None
    assert buckets.take("key", quota).wait is not None
    assert buckets.take("other", quota).wait is None
    clock.now += 3600
    assert buckets.take("key", quota).remaining == quota - 1


def test_full_buckets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rates._MOST_BUCKETS", 10)
    clock = Clock()
    buckets = Buckets(clock)
    for number in range(10):
        buckets.take(str(number), 60)
    clock.now += 2
    buckets.take("one more", 60)
    assert len(buckets) == 1


@on_databases
def test_a_limited_key_is_told_how_much_is_left_then_to_wait(client: TestClient, database: Database) -> None:
    limited(database, 3)
    answers = [client.get(path) for path in ("/v1/jobs", "/v1/jobs/job_none", "/v1/models", "/v1/models")]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 429]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"default";q=3;w=60'}
    left = [answer.headers["ratelimit"].partition(";t=") for answer in answers]
    assert [given for given, _, _ in left] == ['"default";r=2', '"default";r=1', '"default";r=0', '"default";r=0']
    assert [float(full) for _, _, full in left] == pytest.approx([20, 40, 60, 60], abs=2)
    problem = answers[-1].json()
    assert (problem["code"], problem["status"]) == ("RATE_LIMITED", 429)
    assert 18 <= problem["retry_after"] == int(answers[-1].headers["retry-after"]) <= 20
    with database.session_scope() as session:
        other = issue_key(session, tenant=TENANT, name="other", scopes=["read"])[1]
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_without_a_limit_nothing_is_said_of_one(client: TestClient) -> None:
    assert not [name for name in client.get("/v1/jobs").headers if name.startswith("ratelimit")]
    assert "ratelimit" not in client.get("/healthz").headers


def test_a_tenants_limit_is_read_again_after_a_while(settings: Settings, database: Database) -> None:
    clock = Clock()
    rates = Rates(settings.model_copy(update={"requests_per_minute": 100}), clock)

    def limit() -> int | None:
        with database.session_scope(read_only=True) as session:
            return rates.limit_of(session, TENANT)

    assert limit() == 100
    limited(database, 5)
    clock.now += 9
    assert limit() == 100
    clock.now += 2
    assert limit() == 5


def test_wrong_keys_are_counted_by_address_and_right_ones_pass(client: TestClient) -> None:
    wrong = {"Authorization": f"Bearer {new_plaintext()}"}
    answers = [client.get("/v1/jobs", headers=wrong) for _ in range(65)]
    assert {answer.status_code for answer in answers[:60]} == {401}
    assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "TOO_MANY_FAILURES")
    assert answers[-1].headers["retry-after"] == "1"
    spoofed = client.get("/v1/jobs", headers=wrong | {"X-Forwarded-For": "203.0.113.9"})
    assert spoofed.status_code == 429
    assert client.get("/v1/jobs").status_code == 200
    del client.headers["Authorization"]
    assert client.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    ("address", "neighbour", "shared"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "testclient", True),
    ],
)
def test_an_ipv6_network_counts_as_one_address(settings: Settings, address: str, neighbour: str, shared: bool) -> None:
    rates = Rates(settings.model_copy(update={"failed_authentications_per_minute": 1}), Clock())
    rates.note_failure(address)
    if shared:
        with pytest.raises(TooManyRequests):
            rates.note_failure(neighbour)
    else:
        rates.note_failure(neighbour)
