"""What was acknowledged is there, and once."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.nemesis.evidence import Evidence, Rule
from tests.nemesis.history import Operation

_TABLES = {"job": "jobs", "mdl": "models", "ds": "datasets"}
_DELETES = {"job": "delete job", "mdl": "delete model", "ds": "delete dataset"}
_MAKING = {"job.create", "job.clone", "model.create", "dataset.create"}
_READS = ("read", "events", "artifacts")


def lost_orders(evidence: Evidence) -> Iterator[str]:
    """What was acknowledged, and never asked to be deleted, is there in the end."""
    there = {row["id"] for name in _TABLES.values() for row in evidence.state[name] if not row.get("deleted_at")}
    for operation in evidence.of_kind("order"):
        id_ = operation.answer.get("id") if operation.ok else None
        if id_ is not None and id_ not in there and not _deletes(evidence, id_):
            yield f"{id_}, acknowledged by {operation}, is gone"


def _deletes(evidence: Evidence, id_: str) -> list[Operation]:
    return evidence.may_have_happened(_DELETES[id_.partition("_")[0]], id_)


def missing_reads(evidence: Evidence) -> Iterator[str]:
    """An acknowledged job is found by every later read, until its deletion may have begun."""
    acknowledged: dict[str, float] = {}
    for operation in evidence.of_kind("order"):
        if operation.ok and operation.answer.get("jobs"):
            id_ = operation.answer["id"]
            acknowledged[id_] = min(operation.end, acknowledged.get(id_, operation.end))
    for operation in evidence.operations:
        job = operation.asked.get("job", "")
        if operation.status == 404 and operation.kind in (*_READS, "cancel", "pause", "resume", "retry"):
            known = job in acknowledged and acknowledged[job] < operation.begin
            without_result = operation.answer.get("code") == "NO_RESULT"
            if known and not without_result and not _begun(evidence, job, operation.answered):
                yield f"{operation} found nothing"


def _begun(evidence: Evidence, job: str, before: float) -> bool:
    return any(delete.begin < before for delete in _deletes(evidence, job))


def found_after_deletion(evidence: Evidence) -> Iterator[str]:
    """A job whose deletion was acknowledged is not found by any later read."""
    gone = {one.asked["job"]: one.end for one in evidence.of_kind("delete job") if one.ok}
    for id_, sights in evidence.sights.items():
        for operation, _ in sights:
            if operation.kind != "order" and operation.begin > gone.get(id_, operation.begin):
                yield f"{operation} showed {id_}, which was deleted"


def incomplete_lists(evidence: Evidence) -> Iterator[str]:
    """A list holds every job that was acknowledged before, as far as it goes back."""
    orders = [one for one in evidence.of_kind("order") if one.ok and one.answer.get("jobs")]
    for listing in evidence.of_kind("list"):
        if not listing.ok:
            continue
        listed, below = listing.answer["listed"], listing.asked.get("below") or "~"
        until = listed[-1] if listing.answer["next"] else ""
        for order in orders:
            id_ = order.answer["id"]
            before = order.tenant == listing.tenant and order.end < listing.begin
            if before and until <= id_ < below and id_ not in listed and not _begun(evidence, id_, listing.answered):
                yield f"{listing} misses {id_} of {order}"


def keys_with_two_answers(evidence: Evidence) -> Iterator[str]:
    """One idempotency key has one answer, whenever it comes."""
    first: dict[tuple[str, str, str], Operation] = {}
    for operation in evidence.of_kind("order"):
        if operation.ok:
            identity = (operation.tenant, operation.asked["path"], operation.asked["key"])
            before = first.setdefault(identity, operation)
            if [before.answer[n] for n in ("id", "sha256", "status")] != [
                operation.answer[n] for n in ("id", "sha256", "status")
            ]:
                yield f"{before} and {operation} were answered {before.answer['id']} and {operation.answer['id']}"


def refused_repetitions(evidence: Evidence) -> Iterator[str]:
    """An order that was acknowledged is not refused when it comes again, whatever became of what it was about."""
    known: dict[tuple[str, str, str], Operation] = {}
    for operation in sorted(evidence.of_kind("order"), key=lambda one: one.answered):
        identity = (operation.tenant, operation.asked["path"], operation.asked["key"])
        before = known.get(identity)
        refused = operation.outcome == "fail" and operation.status is not None
        if operation.ok:
            known.setdefault(identity, operation)
        elif refused and before is not None and before.end < operation.begin and not _in_flight(operation):
            yield f"{operation} was refused with {operation.answer.get('code')} after {before}"


def _in_flight(operation: Operation) -> bool:
    return bool(operation.answer.get("code") == "IDEMPOTENCY_IN_FLIGHT")


def keys_with_two_jobs(evidence: Evidence) -> Iterator[str]:
    """One idempotency key makes one job; each carries the key that it was ordered under."""
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    for id_, row in evidence.jobs.items():
        made[row["tenant"], row["metadata"].get("key", id_)].add(id_)
    for id_, sights in evidence.sights.items():
        made[sights[0].operation.tenant, sights[0].job.get("key") or id_].add(id_)
    for (tenant, key), ids in made.items():
        if len(ids) > 1:
            yield f"the key {key} of {tenant} made {', '.join(sorted(ids))}"


def unlogged_orders(evidence: Evidence) -> Iterator[str]:
    """Whatever was ordered stands in the audit log once, however often its order was repeated."""
    logged = Counter(row["target"] for row in evidence.state["audit"] if row["action"] in _MAKING)
    ordered = {one.answer["id"] for one in evidence.of_kind("order") if one.ok}
    for id_ in sorted(ordered | set(evidence.jobs)):
        if logged[id_] != 1:
            yield f"{id_} stands {logged[id_]} times in the audit log as made"


def lost_bytes(evidence: Evidence) -> Iterator[str]:
    """What was acknowledged of an upload is not asked for again."""
    for offset in evidence.of_kind("offset"):
        if offset.ok:
            for chunk in evidence.of_kind("chunk"):
                if chunk.ok and chunk.asked["upload"] == offset.asked["upload"] and chunk.end < offset.begin:
                    reached, told = int(chunk.answer["upload-offset"]), int(offset.answer["upload-offset"])
                    if told < reached:
                        yield f"{offset} told {told}, after {chunk} had reached {reached}"


def incomplete_uploads(evidence: Evidence) -> Iterator[str]:
    """A model whose completion was acknowledged is ready."""
    models = {row["id"]: row for row in evidence.state["models"]}
    for operation in evidence.of_kind("complete"):
        if operation.ok and not _deletes(evidence, operation.asked["model"]):
            state = models.get(operation.asked["model"], {}).get("state")
            if state != "ready":
                yield f"the model of {operation} is {state}"


RULES: tuple[Rule, ...] = (
    lost_orders,
    missing_reads,
    found_after_deletion,
    incomplete_lists,
    keys_with_two_answers,
    refused_repetitions,
    keys_with_two_jobs,
    unlogged_orders,
    lost_bytes,
    incomplete_uploads,
)
