"""Webhooks: what happened is told, at least once and each time alike, and what did not happen is not."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from service.webhooks.outbox import EVENTS
from tests.nemesis.evidence import Evidence, Rule

LATE_SECONDS = 5.0
"""How long a delivery may be due when the service is quiet."""


def missing_deliveries(evidence: Evidence) -> Iterator[str]:
    """Every event goes out once to every endpoint that asks for it and to its job's own address."""
    jobs, state = evidence.jobs, evidence.state
    there = Counter((row["event_id"], row["tenant"], row["url"]) for row in state["deliveries"])
    asking = defaultdict(list)
    for endpoint in state["endpoints"]:
        if endpoint["url"] is not None:
            asking[endpoint["tenant"]].append(endpoint)
    for id_, row in jobs.items():
        for event in evidence.events[id_]:
            if event["type"] not in EVENTS:
                continue
            wanted = Counter({None: sum(event["type"] in endpoint["events"] for endpoint in asking[row["tenant"]])})
            wanted += Counter([row["webhook_url"]] if row["webhook_url"] else [])
            for url, count in wanted.items():
                if there[event["id"], row["tenant"], url] != count:
                    found = there[event["id"], row["tenant"], url]
                    yield f"{event['type']} of {id_} goes out {found} times to {url or 'endpoints'}, not {count}"


def overdue_deliveries(evidence: Evidence) -> Iterator[str]:
    """No delivery that is due stays behind."""
    now = evidence.state["database_time"]
    for row in evidence.state["deliveries"]:
        if row["status"] == "pending" and row["due_at"] < now - LATE_SECONDS:
            yield f"{row['id']} ({row['type']} of {row['job_id']}) is due for {now - row['due_at']:.0f} s"
        elif row["status"] == "failed":
            yield f"{row['id']} ({row['type']} of {row['job_id']}) was given up after {row['attempts']} tries"


def deliveries_that_never_came(evidence: Evidence) -> Iterator[str]:
    """A delivery that succeeded has come, and was answered 2xx."""
    taken = {one["event_id"] for one in evidence.state["received"] if 200 <= (one["status"] or 0) < 300}
    for row in evidence.state["deliveries"]:
        if row["status"] == "succeeded" and row["event_id"] not in taken:
            yield f"{row['id']} ({row['type']} of {row['job_id']}) succeeded, and nobody has received it"


def webhooks_that_differ(evidence: Evidence) -> Iterator[str]:
    """However often an event is told, it is told alike."""
    told: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in evidence.state["received"]:
        told[one["path"], one["event_id"]].add(one["sha256"])
    for (path, event_id), bodies in told.items():
        if len(bodies) > 1:
            yield f"{event_id} came with {len(bodies)} different bodies to {path}"


def untrue_webhooks(evidence: Evidence) -> Iterator[str]:
    """What is told has happened, to a job of the tenant whose address it is."""
    events = {row["id"]: row for row in evidence.state["events"]}
    for one in evidence.state["received"]:
        job = evidence.jobs.get(one["job_id"])
        if job is None:  # deleted since
            continue
        event = events.get(one["event_id"])
        if event is None or (event["type"], event["job_id"]) != (one["type"], one["job_id"]):
            yield f"{one['type']} of {one['job_id']} was told as {one['event_id']}, which is no such event"
        if not one["path"].startswith(f"/{job['tenant']}/"):
            yield f"{one['type']} of {one['job_id']}, which is {job['tenant']}'s, was told to {one['path']}"


RULES: tuple[Rule, ...] = (
    missing_deliveries,
    overdue_deliveries,
    deliveries_that_never_came,
    webhooks_that_differ,
    untrue_webhooks,
)
