"""The service under load: `python -m tests.benchmarks.load_bench [--only PART …] [--seconds N]`.

One API process with authentication, rate limits and PostgreSQL that flushes every commit; the sender is a process of
its own on the same machine, and asks at a fixed rate whatever the answers take. Every figure has its target beside it.

status      `GET /v1/jobs/{id}` at 300 a second, with 100 jobs queued and with 10,000; beside it an empty route
creation    `POST /v1/jobs` with an Idempotency-Key at 150 a second; then the jobs in the table against the answers
listing     pages of 10,000 queued jobs, and claims of single ones
uploads     four models of 1 GB at a time, and reads of the status meanwhile
downloads   one artifact of 1 GB, broken off half-way and resumed
scheduling  from the order to the first line of the engine, on a worker that waits for work
fairness    how long one tenant waits behind another's flood
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import func, select

from service import jobs
from service.processes import start, stop
from service.tables import Job
from tests.benchmarks import load_bytes, load_workers
from tests.benchmarks.load_site import LoadSite, load, load_site, tell
from tests.benchmarks.open_loop import Request, measure, percentile
from tests.servers import free_port

READS, WRITES = 300, 150
WARM_SECONDS = 2
LEASE = 60.0
MANY = 10_000


def main() -> None:
    """Measure the parts that are asked for, each on the same service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=int, default=20, help="length of each run at a fixed rate")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of each upload and of the download")
    pinned = "keep the API process on one core"
    parser.add_argument("--pin", type=int, metavar="CORE", help=pinned)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with load_site(arguments.seed) as site:
        if arguments.pin is not None:
            site.pin(arguments.pin)
        for name in arguments.only:
            print(f"\n{name}", flush=True)
            PARTS[name](site, arguments)
            site.clear()


def status(site: LoadSite, arguments: Any) -> None:
    """Reads at a fixed rate, with a short and a long queue."""
    empty_route(arguments.seconds)
    for queued in (100, MANY):
        site.clear()
        ids = site.queued(queued)
        measure(site.live.url, READS, site.reads(ids, READS * WARM_SECONDS))
        measured = measure(site.live.url, READS, site.reads(ids, READS * arguments.seconds))
        tell(f"GET /v1/jobs/{{id}}, {queued:,} queued", measured, 100)


def empty_route(seconds: int) -> None:
    """The least that FastAPI takes at the same rate."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.http_bench:empty", "--port", str(port)]
    rival = start([*command, "--log-level", "warning"])
    try:
        url, asked = f"http://127.0.0.1:{port}", Request("GET", "/", {})
        while measure(url, READS, [asked] * READS).statuses[0]:
            time.sleep(0.1)
        tell("empty route", measure(url, READS, [asked] * (READS * seconds)), 100)
    finally:
        stop(rival, grace=5)


def creation(site: LoadSite, arguments: Any) -> None:
    """Orders at a fixed rate, and all of them in the table."""
    measure(site.live.url, WRITES, orders(site, "warm", WRITES * WARM_SECONDS))
    before = count_jobs(site)
    measured = measure(site.live.url, WRITES, orders(site, "load", WRITES * arguments.seconds))
    tell("POST /v1/jobs", measured, 250)
    told = set(measured.ids(202))
    with site.database.session_scope(read_only=True) as session:
        kept = set(session.scalars(select(Job.id)))
    print(f"acknowledged {len(told)}, of these in the table {len(told & kept)}, new rows {len(kept) - before}")
    if told - kept or len(told) != len(measured.answers):
        sys.exit("an acknowledged job is not in the table, or one was not acknowledged")
    print(f"{len(told) / measured.seconds:.0f} jobs/s acknowledged; target {WRITES}/s")


def orders(site: LoadSite, name: str, count: int) -> list[Request]:
    """Orders that differ in their key alone."""
    body = json.dumps(site.order())
    keys = (f"{name}-{site.chance.getrandbits(64):x}-{number}" for number in range(count))
    return [site.request("POST", "/v1/jobs", body, **{"Idempotency-Key": key}) for key in keys]


def count_jobs(site: LoadSite) -> int:
    """Jobs in the table."""
    with site.database.session_scope(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def listing(site: LoadSite, arguments: Any) -> None:
    """Pages of a long list by cursor, and claims from a long queue."""
    ids = sorted(site.queued(MANY))
    for name, cursor in (("first", None), ("middle", ids[MANY // 2]), ("last", ids[50])):
        query = "" if cursor is None else f"&cursor={cursor}"
        tell_steps(f"{name} page of 50", 100, 100, partial(page, site, f"/v1/jobs?limit=50{query}"))
    tell_steps("claim", 200, 50, lambda: claim(site))


def page(site: LoadSite, path: str) -> None:
    """One page of the list."""
    answer = site.live.client.get(path)
    assert answer.status_code == 200 and len(answer.json()["data"]) == 50, answer.text


def claim(site: LoadSite) -> None:
    """Take one job, as a worker does."""
    with site.database.session_scope() as session:
        assert jobs.claim_next(session, "load", LEASE) is not None


def tell_steps(name: str, times: int, target_ms: float, step: Callable[[], None]) -> None:
    """Percentiles of a step that is done again and again, one at a time, after three that do not count."""
    spans = []
    for turn in range(times + 3):
        begun = time.perf_counter()
        step()
        if turn >= 3:
            spans.append(time.perf_counter() - begun)
    figures = "  ".join(f"p{100 * share:.0f} {percentile(spans, share):.1f}" for share in (0.5, 0.95, 0.99))
    ratio = percentile(spans, 0.99) / target_ms
    print(f"{name:34} {figures}  max {percentile(spans, 1):.1f} ms  n {times}")
    print(f"{'':34} p99 / target of {target_ms:.0f} ms = {ratio:.2f}; {load()}", flush=True)


PARTS: dict[str, Callable[[LoadSite, Any], None]] = {
    "status": status,
    "creation": creation,
    "listing": listing,
    "uploads": load_bytes.uploads,
    "downloads": load_bytes.downloads,
    "scheduling": load_workers.scheduling,
    "fairness": load_workers.fairness,
}

if __name__ == "__main__":
    main()
