"""One run from the start of the servers to the verdict."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from sqlalchemy import func, select

from service.db import db_epoch
from service.states import FINAL
from service.tables import Job, WebhookDelivery
from tests.databases import migrate
from tests.nemesis import checker, plan, report, state
from tests.nemesis.book import Book
from tests.nemesis.caller import Caller
from tests.nemesis.cluster import TENANTS, Cluster
from tests.nemesis.evidence import Violation
from tests.nemesis.faults import Nemesis
from tests.nemesis.history import History, operations
from tests.nemesis.workload import Client
from tests.servers import postgresql, valkey
from tests.service.webhooks.receiver import Behaviour, Receiver, hang, receiver, reset, status

_TELL_SECONDS = 10.0
_IDLE_SHARE, _MOST_IDLE = 0.15, 20.0
_REACHABLE_SECONDS = 3.0
_TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Order:
    """What to run: `pauses` bound the time between faults and `settle` the wait for a quiet service, in seconds."""

    seconds: float
    seed: int
    leases: str
    folder: Path
    pauses: tuple[float, float]
    settle: float
    trained_share: float


@dataclass(frozen=True)
class Verdict:
    """How it ended."""

    violations: list[Violation]
    table: list[str]
    counts: Counter[str]
    """How many orders were acknowledged, jobs succeeded and things were broken."""
    settled: float | None
    """Seconds until the service was quiet; None when it did not become so in time."""


def run(order: Order) -> Verdict:
    """Start everything, let it be broken, heal it, judge what is left in `folder`."""
    order.folder.mkdir(parents=True, exist_ok=True)
    digest = plan.digest(order.seed, order.pauses)
    print(f"seed {order.seed}, plan {digest}, {order.leases} leases, {order.seconds:g} s", flush=True)
    with ExitStack() as stack:
        servers = stack.enter_context(postgresql()), stack.enter_context(valkey())
        database = servers[0].create()
        migrate(servers[0].url(database))
        cluster = Cluster(order.folder, *servers, database, order.leases)
        stack.callback(cluster.close)
        hooks = stack.enter_context(receiver())
        history = History(order.folder)
        stack.callback(history.close)
        hooks.always = _moody(order.seed)
        nemesis = Nemesis(cluster, history)
        settled = _disturb(order, cluster, nemesis, history, hooks)
        state.sweep(cluster.settings, cluster.database)
        left = state.plain(state.read_state(cluster.settings, cluster.database, hooks.requests))
        state.write(left, order.folder)
    violations = checker.judge(history.entries, left)
    return Verdict(
        violations, report.table(history.entries, left, violations), _counts(history, left, nemesis), settled
    )


def _counts(history: History, left: state.State, nemesis: Nemesis) -> Counter[str]:
    acknowledged = sum(one.kind == "order" and one.ok for one in operations(history.entries))
    succeeded = sum(row["status"] == "succeeded" for row in left["jobs"])
    return Counter(acknowledged=acknowledged, succeeded=succeeded, broken=sum(nemesis.done.values()))


def _moody(seed: int) -> Behaviour:
    chance = random.Random(f"{seed} receiver")
    moods = [status(204), status(500), reset, hang(4)]

    def behave(handler: BaseHTTPRequestHandler) -> None:
        (mood,) = chance.choices(moods, (88, 7, 4, 1))
        mood(handler)

    return behave


def _disturb(order: Order, cluster: Cluster, nemesis: Nemesis, history: History, hooks: Receiver) -> float | None:
    cluster.start()
    books = {tenant: cluster.upload(tenant, order.folder) for tenant in TENANTS}
    url = f"http://127.0.0.1:{hooks.port}"
    for book in books.values():
        book.endpoints.append(_endpoint(cluster, book.tenant, f"{url}/{book.tenant}/all"))
    clients = [_client(order, cluster, history, name, books, url) for name in plan.CLIENTS]
    with _telling(history):
        for client in clients:
            client.start()
        _strike(order, nemesis, clients)
        nemesis.heal()
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join()
            client.check()
        _go_on(cluster, history, books)
        return _settle(cluster, order.settle)


def _endpoint(cluster: Cluster, tenant: str, url: str) -> str:
    headers = {"Authorization": f"Bearer {cluster.keys[tenant]}"}
    answer = cluster.live.client.post("/v1/webhook_endpoints", json={"url": url}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _client(order: Order, cluster: Cluster, history: History, name: str, books: dict[str, Book], hooks: str) -> Client:
    tenant = name.partition("/")[0]
    (other,) = set(books) - {tenant}
    caller = Caller(history, name, cluster.live.url, cluster.keys[tenant])
    return Client(order.seed, caller, books[tenant], books[other], trained_share=order.trained_share, hooks=hooks)


def _strike(order: Order, nemesis: Nemesis, clients: list[Client]) -> None:
    """Break one thing after the other until the time is over; shortly before nothing new is ordered any more."""
    until = time.monotonic() + order.seconds
    idle = until - min(order.seconds * _IDLE_SHARE, _MOST_IDLE)
    for fault in plan.faults(order.seed, order.pauses):
        nemesis.wait(min(fault.pause, until - time.monotonic()))
        if time.monotonic() >= until:
            return
        for client in clients:
            client.check()
        nemesis.strike(fault)
        if time.monotonic() >= idle:
            for client in clients:
                client.idle.set()


def _go_on(cluster: Cluster, history: History, books: dict[str, Book]) -> None:
    """Let what is paused run to its end."""
    for tenant, book in books.items():
        caller = Caller(history, f"{tenant}/end", cluster.live.url, cluster.keys[tenant])
        left = book.jobs()
        while left:
            seen = {job.id: caller.call("read", "GET", f"/v1/jobs/{job.id}", {"job": job.id}) for job in left}
            is_now = {id_: answer.json().get("status") for id_, answer in seen.items() if answer is not None}
            for id_ in (id_ for id_, status_ in is_now.items() if status_ == "paused"):
                caller.call("resume", "POST", f"/v1/jobs/{id_}/resume", {"job": id_})
            left = [job for job in left if is_now.get(job.id) == "pausing"]
            time.sleep(_TURN_SECONDS)
        caller.close()


def _settle(cluster: Cluster, most: float) -> float | None:
    began = time.monotonic()
    while (took := time.monotonic() - began) < most:
        if _is_quiet(cluster):
            return took
        time.sleep(_TURN_SECONDS)
    return None


def _is_quiet(cluster: Cluster) -> bool:
    """No job is on its way, and no webhook but those whose sender died, which come again when its lease is over."""
    with cluster.database.session_scope(read_only=True) as session:
        moving = session.scalar(select(func.count()).where(Job.status.not_in((*FINAL, "paused"))))
        free = WebhookDelivery.due_at < db_epoch() + _REACHABLE_SECONDS
        waiting = session.scalar(select(func.count()).where(WebhookDelivery.status == "pending", free))
        return not moving and not waiting


@contextmanager
def _telling(history: History) -> Iterator[None]:
    """A line every few seconds while the block runs."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_TELL_SECONDS):
            print(report.progress(history), flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
