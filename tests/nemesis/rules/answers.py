"""Each answer by itself: its status, and whose ids it holds."""

from collections.abc import Iterator

from tests.nemesis.evidence import Evidence, Rule
from tests.nemesis.history import Operation

EXPECTED: dict[str, set[int]] = {
    "order": {200, 201, 202, 404, 409},
    "reuse key": {404, 422},
    "read": {200, 404},
    "list": {200},
    "events": {200, 404},
    "artifacts": {200, 404},
    "download": {200, 404},
    "cancel": {200, 404, 409},
    "pause": {200, 404, 409},
    "resume": {200, 404, 409},
    "retry": {200, 404, 409},
    "delete job": {204, 404, 409},
    "delete model": {204, 404, 409},
    "delete dataset": {204, 404, 409},
    "chunk": {204, 404, 409, 423},
    "offset": {200, 404},
    "complete": {200, 404, 409, 423},
    "deliveries": {200},
    "stranger": {404},
}
"""404 and 409 are judged further by what was deleted and by the order of states."""


def faults_of_the_service(evidence: Evidence) -> Iterator[str]:
    """The only 5xx is 503, and it says when to come back."""
    for operation in evidence.operations:
        status = operation.status or 0
        if status >= 500 and not (status == 503 and "retry-after" in operation.answer):
            yield f"{operation} was answered {status} {operation.answer.get('code')}"


def unexpected_statuses(evidence: Evidence) -> Iterator[str]:
    """A request is answered as its kind can be."""
    for operation in evidence.operations:
        status = operation.status
        if status is not None and status < 500 and status not in EXPECTED[operation.kind]:
            yield f"{operation} was answered {status} {operation.answer.get('code')}"


def others_ids(evidence: Evidence) -> Iterator[str]:
    """No answer holds an id of another tenant."""
    owners = _owners(evidence)
    for operation in evidence.operations:
        for id_ in operation.answer.get("ids", []):
            if owners.get(id_, operation.tenant) != operation.tenant:
                yield f"{operation} told {operation.tenant} of {id_}, which is {owners[id_]}'s"


def _owners(evidence: Evidence) -> dict[str, str]:
    tables = ("jobs", "models", "datasets", "artifacts", "endpoints", "deliveries")
    owners = {row["id"]: row["tenant"] for name in tables for row in evidence.state[name]}
    owners |= {row["target"]: row["tenant"] for row in evidence.state["audit"] if row["target"]}
    jobs = {row["job_id"]: row["tenant"] for row in evidence.state["artifacts"]}
    events = evidence.state["events"]
    return owners | {row["id"]: owners[row["job_id"]] for row in events if row["job_id"] in owners | jobs}


def damaged_downloads(evidence: Evidence) -> Iterator[str]:
    """What is downloaded has the digest that its ETag says."""
    for operation in evidence.of_kind("download"):
        if operation.ok and operation.answer["etag"] != f'"{operation.answer["sha256"]}"':
            yield f"{operation} brought other bytes than its ETag says"


def changed_downloads(evidence: Evidence) -> Iterator[str]:
    """The same address always brings the same bytes."""
    first: dict[str, Operation] = {}
    for operation in evidence.of_kind("download"):
        if operation.ok:
            before = first.setdefault(operation.asked["path"], operation)
            if before.answer["sha256"] != operation.answer["sha256"]:
                yield f"{operation} brought other bytes than {before}"


RULES: tuple[Rule, ...] = (
    faults_of_the_service,
    unexpected_statuses,
    others_ids,
    damaged_downloads,
    changed_downloads,
)
