"""A bad network between the service, its database and its broker: everything ends in time, and goes on afterwards."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service import postgresql as bounds
from service.db import Database
from tests.faults.conftest import Site, make_settings, open_site
from tests.faults.recovery import Recovery
from tests.faults.test_outages import order
from tests.processes import wait_for
from tests.proxy import Mood, Proxy
from tests.servers import PostgreSQL, valkey

LONGEST = 30.0
"""Seconds that any operation may take."""
CROWD = 12


@dataclass
class Network:
    """A site, and the two ways between it and what it leans on."""

    site: Site
    database: Proxy
    broker: Proxy


@pytest.fixture(scope="module")
def whole_network(
    postgresql_server: PostgreSQL, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory, leases: str
) -> Iterator[Network]:
    """API and worker that reach PostgreSQL and Valkey through proxies alone; the tests themselves go round them."""
    folder = tmp_path_factory.mktemp("network")
    name = postgresql_server.create(postgresql_template)
    with valkey() as server, Proxy(("127.0.0.1", postgresql_server.port)) as database, Proxy(server.socket) as broker:
        url = postgresql_server.url(name).replace(f":{postgresql_server.port}/", f":{database.port}/")
        settings = make_settings(folder, url, f"redis://127.0.0.1:{broker.port}/0", leases)
        for site in open_site(folder, settings, server):
            site.live.database.dispose()
            site.live.database = Database(postgresql_server.url(name))
            yield Network(site, database, broker)


@pytest.fixture
def network(whole_network: Network) -> Network:
    """Both ways in order."""
    whole_network.database.behave("well")
    whole_network.broker.behave("well")
    whole_network.site.heal()
    return whole_network


def test_a_statement_that_is_never_answered_ends_and_the_next_one_is_asked_elsewhere(
    postgresql_server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ANSWER_SECONDS", 0.5)
    with ThreadPoolExecutor(1) as asking, Proxy(("127.0.0.1", postgresql_server.port)) as way:
        url = postgresql_server.url("postgres").replace(f":{postgresql_server.port}/", f":{way.port}/")
        database = Database(url)
        assert ask(database) < 10
        way.behave("hole")
        unanswered = asking.submit(ask, database)
        with pytest.raises(OperationalError):  # no answer for half a second, then no connection for five
            unanswered.result(timeout=3 * 5.5)
        way.strand()
        assert ask(database) < 10
        way.behave("refuse")
        way.cut(reset=True)
        with pytest.raises(OperationalError):
            ask(database)
        way.behave("well")
        assert ask(database) < 10
        assert way.connections <= 2, "what was given up is closed, at our end"
        database.dispose()


def ask(database: Database) -> float:
    """Seconds that one question takes."""
    began = time.monotonic()
    with database.session_scope(read_only=True) as session:
        assert session.scalar(text("SELECT 1")) == 1
    return time.monotonic() - began


@pytest.mark.parametrize("mood", ["slow", "drip"])
def test_a_slow_network_delays_and_breaks_nothing(network: Network, mood: Mood) -> None:
    network.database.behave(mood)
    network.broker.behave(mood)
    began = time.monotonic()
    job_id = order(network.site)
    assert time.monotonic() - began < LONGEST
    network.site.assert_one_result(job_id, ["succeeded"])


def test_connections_that_are_reset_again_and_again_cost_no_attempt(network: Network) -> None:
    job_id = network.site.submit()
    network.site.running(job_id)
    for _ in range(3):
        network.database.cut(reset=True)
        network.broker.cut(reset=True)
        answer = network.site.live.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code in (200, 503)
        time.sleep(network.site.live.settings.heartbeat_seconds)
    network.site.assert_one_result(job_id, ["succeeded"])


def test_a_black_hole_holds_nobody_for_long_and_what_fell_in_is_given_up(network: Network, recovery: Recovery) -> None:
    site, live = network.site, network.site.live
    job_id = site.submit()
    site.running(job_id)
    assert live.api is not None
    api = psutil.Process(live.api.pid)
    before = (api.num_threads(), api.num_fds(), network.database.connections)
    engine = site.engine()
    engine.suspend()  # so that the job does not end in the hole
    network.broker.behave("hole")
    began = time.monotonic()
    swift = order(site)
    assert time.monotonic() - began < 10, "a ring that nobody hears is not waited for"
    network.database.behave("hole")
    with ThreadPoolExecutor(CROWD) as crowd:
        asked = [crowd.submit(timed, live.client, f"/v1/jobs/{job_id}") for _ in range(CROWD)]
        while not all(one.done() for one in asked):
            assert timed(live.client, "/healthz")[1] < 5
            time.sleep(0.5)
    assert {one.result()[0] for one in asked} == {503}
    assert max(one.result()[1] for one in asked) < LONGEST
    network.database.strand()
    network.broker.strand()
    engine.resume()
    with recovery.within(LONGEST, "half-open connections to PostgreSQL: the API answers again"):
        wait_for(lambda: live.client.get(f"/v1/jobs/{job_id}").status_code == 200, seconds=LONGEST)
    site.assert_one_result(job_id, ["succeeded"])
    with recovery.within(LONGEST, "half-open connections to the broker: a job is picked up"):
        live.wait_for(lambda: bool(site.outcomes(swift)), "the other job")
    site.assert_one_result(swift, ["succeeded"])
    wait_for(lambda: api.num_fds() <= before[1] + CROWD, seconds=60)
    assert api.num_threads() <= before[0] + CROWD
    assert network.database.connections <= before[2] + 2 * CROWD


def timed(client: httpx.Client, path: str) -> tuple[int, float]:
    """A request's status and how many seconds it took."""
    began = time.monotonic()
    status = client.get(path, timeout=2 * LONGEST).status_code
    return status, time.monotonic() - began
