"""The order of things: what a client has seen, nobody who asks later sees undone."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import accumulate

from service.states import FINAL, FOLLOWS
from tests.nemesis.evidence import Evidence, Row, Rule, Sight

NEEDS = {
    ("queued", "paused"): "pause",
    ("running", "pausing"): "pause",
    ("queued", "cancelled"): "cancel",
    ("running", "cancelling"): "cancel",
    ("pausing", "cancelling"): "cancel",
    ("paused", "cancelled"): "cancel",
    ("paused", "queued"): "resume",
    ("failed", "queued"): "retry",
    ("cancelled", "queued"): "retry",
}
"""Changes that only a client's request brings about."""

EVENTS = {
    "job.queued": ((None,), "queued"),
    "job.started": (("queued",), "running"),
    "job.requeued": (("running",), "queued"),
    "job.pausing": (("running",), "pausing"),
    "job.paused": (("queued", "pausing"), "paused"),
    "job.resumed": (("paused",), "queued"),
    "job.cancelling": (("running", "pausing"), "cancelling"),
    "job.cancelled": (("queued", "paused", "cancelling"), "cancelled"),
    "job.succeeded": (("running", "pausing"), "succeeded"),
    "job.rejected": (("running", "pausing"), "rejected"),
    "job.failed": (("running", "pausing"), "failed"),
    "job.retried": (("failed", "cancelled"), "queued"),
}
"""From which states each event leads to which."""

REFUSED = {
    "cancel": FINAL - {"cancelled"},
    "pause": FINAL | {"cancelling"},
    "resume": set(FOLLOWS) - {"paused"},
    "retry": set(FOLLOWS) - {"failed", "cancelled"},
    "delete job": set(FOLLOWS) - FINAL,
}
"""In which states a job may be for each request to be refused because of it."""

_WHILE_HELD = ("running", "pausing", "cancelling")
_ASKED_FOR = {"job.pausing": "pause", "job.cancelling": "cancel", "job.resumed": "resume", "job.retried": "retry"}
_END = float("inf")


@cache
def reachable(status: str, verbs: frozenset[str]) -> frozenset[str]:
    """States that can follow, when clients may have asked for these verbs meanwhile."""
    found, new = {status}, {status}
    while new:
        steps = {(a, b) for a in new for b in FOLLOWS[a] if NEEDS.get((a, b), "") in verbs | {""}}
        new = {b for _, b in steps} - found
        found |= new
    return frozenset(found)


def states_that_go_back(evidence: Evidence) -> Iterator[str]:
    """A read that began after another had ended sees the same state, or one that can follow it."""
    verbs = _verbs(evidence)
    for id_, sights in evidence.sights.items():
        fresh = [sight for sight in sights if sight.operation.kind != "order"]  # whose answer is kept as it was
        for earlier, later in _in_turn(fresh):
            if (fault := _contradiction(earlier, later, verbs[id_])) is not None:
                yield f"{later.operation} showed {id_} {fault} of {earlier.operation}"
        row = evidence.jobs.get(id_)
        if row is not None:
            yield from (fault for sight in fresh if (fault := _end_contradicts(sight, row, verbs[id_])))


def _in_turn(sights: list[Sight]) -> Iterator[tuple[Sight, Sight]]:
    """Pairs of which the first had ended when the second began; not those with a third one between them, as what
    follows from what follows is a contradiction itself."""
    ended = sorted(sights, key=lambda sight: sight.operation.answered)
    ends = [sight.operation.answered for sight in ended]
    newest = list(accumulate((sight.operation.begin for sight in ended), max))
    for later in sights:
        place = bisect_left(ends, later.operation.begin)
        since = newest[place - 1] if place else _END
        first = bisect_left(ends, since)
        yield from ((earlier, later) for earlier in ended[first:place])


def _verbs(evidence: Evidence) -> dict[str, list[tuple[str, float, float]]]:
    asked: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for operation in evidence.of_kind("pause", "cancel", "resume", "retry"):
        if operation.outcome != "fail":
            asked[operation.asked["job"]].append((operation.kind, operation.begin, operation.end))
    return asked


def _between(verbs: list[tuple[str, float, float]], begin: float, end: float) -> frozenset[str]:
    return frozenset(kind for kind, asked, over in verbs if asked < end and over > begin)


def _contradiction(earlier: Sight, later: Sight, verbs: list[tuple[str, float, float]]) -> str | None:
    before, after = earlier.job, later.job
    possible = reachable(before["status"], _between(verbs, earlier.operation.begin, later.operation.answered))
    if after["status"] not in possible:
        return f"{after['status']}, after it had been {before['status']} in the answer"
    if after["outcomes"][: len(_closed(before))] != _closed(before) or len(after["outcomes"]) < len(before["outcomes"]):
        return f"with the attempts {after['outcomes']}, after {before['outcomes']} in the answer"
    if after.get("version", _END) < before.get("version", 0):
        return f"in version {after['version']}, after {before['version']} in the answer"
    return None


def _closed(job: Row) -> list[str]:
    return [outcome for outcome in job["outcomes"] if outcome is not None]


def _end_contradicts(sight: Sight, row: Row, verbs: list[tuple[str, float, float]]) -> str | None:
    if row["status"] in reachable(sight.job["status"], _between(verbs, sight.operation.begin, _END)):
        return None
    return f"{row['id']} is {row['status']} in the end, after {sight.operation} had shown it {sight.job['status']}"


def torn_views(evidence: Evidence) -> Iterator[str]:
    """An answer shows a job as it was at one moment: an attempt runs if and only if a worker has the job."""
    for id_, sights in evidence.sights.items():
        for operation, job in sights:
            if (None in job["outcomes"]) != (job["status"] in _WHILE_HELD):
                yield f"{operation} showed {id_} {job['status']} with the attempts {job['outcomes']}"


def wrong_refusals(evidence: Evidence) -> Iterator[str]:
    """What a job's state allows is not refused because of that state."""
    for operation in evidence.of_kind(*REFUSED):
        status = operation.answer.get("job_status")
        by_state = status is not None and operation.answer["code"] != "INPUT_DELETED"
        if by_state and status not in REFUSED[operation.kind]:
            yield f"{operation} was refused as the job is {status}"


def broken_events(evidence: Evidence) -> Iterator[str]:
    """The events of a job tell one way through the states, and it ends in the job's own."""
    for id_, row in evidence.jobs.items():
        status = None
        for event in evidence.events[id_]:
            sources, target = EVENTS.get(event["type"], (None, status))
            if sources is not None and status not in sources:
                yield f"{id_}: {event['type']} came while it was {status}"
            status = target
        if status != row["status"]:
            yield f"{id_} is {row['status']}, and its events tell that it is {status}"


def events_out_of_turn(evidence: Evidence) -> Iterator[str]:
    """An engine tells of a job only while a worker has it."""
    for id_ in evidence.jobs:
        status = None
        for event in evidence.events[id_]:
            if not event["type"].startswith("job.") and status not in _WHILE_HELD:
                yield f"{id_}: {event['type']} came while it was {status}"
            status = EVENTS.get(event["type"], (None, status))[1]


def unasked_changes(evidence: Evidence) -> Iterator[str]:
    """No job pauses, stops, goes on or is tried again unless a client asked for it."""
    for id_ in evidence.jobs:
        types = {event["type"] for event in evidence.events[id_]}
        for type_, verb in _ASKED_FOR.items():
            if type_ in types and not evidence.may_have_happened(verb, id_):
                yield f"{id_}: {type_}, and nobody asked for {verb}"


def changed_events(evidence: Evidence) -> Iterator[str]:
    """Events that were listed stay as they are: what comes later comes behind them."""
    for operation in evidence.of_kind("events"):
        listed = operation.answer.get("events") if operation.ok else None
        id_ = operation.asked["job"]
        if listed is not None and id_ in evidence.jobs:
            there = [[event["id"], event["type"]] for event in evidence.events[id_]]
            if there[: len(listed)] != listed:
                yield f"what {operation} listed of {id_} is not how its events begin"


def unfinished_jobs(evidence: Evidence) -> Iterator[str]:
    """When the service is whole again, every job ends or is paused."""
    for id_, row in evidence.jobs.items():
        if row["status"] not in FINAL and row["status"] != "paused":
            yield f"{id_} is still {row['status']}"


RULES: tuple[Rule, ...] = (
    states_that_go_back,
    torn_views,
    wrong_refusals,
    broken_events,
    events_out_of_turn,
    unasked_changes,
    changed_events,
    unfinished_jobs,
)
