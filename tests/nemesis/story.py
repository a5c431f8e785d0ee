"""A small history in which every promise is kept, for tests that break one of them."""

from typing import Any

from tests.nemesis.history import Entry
from tests.nemesis.state import State

JOB, MODEL, MADE, DATASET = (f"{kind}_{number:026}" for number, kind in enumerate(("job", "mdl", "mdl", "ds")))
ENDPOINT, DELIVERY, ARTIFACT, STRANGER = "whe_" + "4" * 26, "wvd_" + "5" * 26, "art_" + "6" * 26, "job_" + "7" * 26
EVENTS = ("job.queued", "job.started", "engine.told", "job.requeued", "job.started", "job.succeeded")
TOLD = ("job.started", "job.succeeded")
DIGEST = "d" * 64
UPLOAD = "/v1/uploads/one"


def event_id(number: int) -> str:
    """Id of the event of that number."""
    return f"evt_{number:026}"


class Story:
    """One job of the tenant red that was lost once and then succeeded, as clients and the database tell of it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.state = _state()
        self.ask("order", 1, 2, key="k", path="/v1/jobs", answer=self.seen("queued", [], id=JOB, status=202))
        self.ask("read", 3, 4, job=JOB, answer=self.seen("running", [None], version=3))
        self.ask("list", 4, 5, answer=self.seen("running", [None], listed=[JOB], next=None))
        self.ask("events", 5, 6, job=JOB, answer={"events": [[event_id(n), EVENTS[n]] for n in range(3)]})
        self.ask("read", 11, 12, job=JOB, answer=self.seen("succeeded", ["worker_lost", "succeeded"], version=7))
        self.ask("download", 13, 14, path="/m", answer={"sha256": DIGEST, "etag": f'"{DIGEST}"', "size": 3})
        self.ask("chunk", 15, 16, upload=UPLOAD, answer={"upload-offset": "64", "status": 204})
        self.ask("offset", 17, 18, upload=UPLOAD, answer={"upload-offset": "64"})
        self.ask("complete", 19, 20, model=MODEL, answer={"id": MODEL})
        self.ask("stranger", 21, 22, "fail", answer={"status": 404, "code": "NOT_FOUND"})

    def seen(self, status_: str, outcomes: list[str | None], version: int | None = None, **more: Any) -> Entry:
        """An answer that shows the job."""
        model_id = MADE if status_ == "succeeded" else None
        job = {"id": JOB, "status": status_, "outcomes": outcomes, "key": "k", "model_id": model_id}
        return more | {"jobs": [job | ({"version": version} if version else {})]}

    def ask(
        self,
        kind: str,
        begin: float,
        end: float,
        outcome: str = "ok",
        *,
        answer: Entry | None = None,
        client: str = "red/0",
        **asked: Any,
    ) -> None:
        """Add a request, and how it ended."""
        told = {"status": 200, "sha256": DIGEST} | (answer or {})
        op = len(self.entries)
        self.entries.append({"time": begin, "client": client, "type": "invoke", "op": op, "kind": kind, **asked})
        self.entries.append({"time": end, "client": client, "type": outcome, "op": op, **told})

    def row(self, table: str, number: int = 0) -> dict[str, Any]:
        """A row of the final state, to change it."""
        row: dict[str, Any] = self.state[table][number]
        return row


def _state() -> State:
    of_red = {"tenant": "red"}
    file = {"size": 3, "sha256": DIGEST}
    job = {
        **of_red, "id": JOB, "status": "succeeded", "token": 2, "attempts": 2, "version": 7, "metadata": {"key": "k"},
        "model_id": MODEL, "dataset_id": None, "configuration": {"timeout": 60}, "checkpoint": None,
        "webhook_url": None, "result": {"model_id": MADE}, "error": None, "finished_at": 12.0,
    }  # fmt: skip
    model = {**of_red, "state": "ready", "deleted_at": None, "archive_sha256": DIGEST}
    attempts = [
        {"job_id": JOB, "token": 1, "started_at": 3.0, "finished_at": 6.0, "outcome": "worker_lost"},
        {"job_id": JOB, "token": 2, "started_at": 7.0, "finished_at": 12.0, "outcome": "succeeded"},
    ]
    events = [{"id": event_id(n), "job_id": JOB, "time": 2.0 + n, "type": type_} for n, type_ in enumerate(EVENTS)]
    told = [event for event in events if event["type"] in TOLD]
    delivery = {**of_red, "endpoint_id": ENDPOINT, "job_id": JOB, "url": None, "status": "succeeded", "attempts": 1}
    made = f"artifacts/{JOB}/2"
    return {
        "jobs": [job],
        "attempts": attempts,
        "events": events,
        "points": [{"job_id": JOB, "token": token, "first": t, "last": t + 1} for token, t in ((1, 4.0), (2, 8.0))],
        "artifacts": [{**of_red, **file, "id": ARTIFACT, "job_id": JOB, "path": "huggingface/w", "key": f"{made}/w"}],
        "models": [
            {**model, "id": MODEL, "job_id": None, "prefix": f"models/{MODEL}", "files": [{"path": "w", **file}]},
            {**model, "id": MADE, "job_id": JOB, "prefix": made, "files": [{"path": "w", **file}]},
        ],
        "datasets": [
            {**of_red, "id": DATASET, "prefix": f"datasets/{DATASET}", "splits": {"train": file}, "deleted_at": None}
        ],
        "endpoints": [{**of_red, "id": ENDPOINT, "url": "http://a/red/all", "events": list(TOLD), "enabled": True}],
        "deliveries": [
            {**delivery, "id": f"{DELIVERY}{n}", "event_id": event["id"], "type": event["type"], "due_at": 9.0}
            for n, event in enumerate(told)
        ],
        "audit": [
            {**of_red, "id": "1", "action": "job.create", "target": JOB},
            {"tenant": "blue", "id": "2", "action": "job.create", "target": STRANGER},
        ],
        "database_time": 30.0,
        "stored": {f"{made}/w": file, f"models/{MODEL}/w": file, f"datasets/{DATASET}/train.jsonl": file},
        "received": [
            {"path": "/red/all", "event_id": event["id"], "status": 204, "sha256": DIGEST, "type": event["type"],
             "job_id": JOB}
            for event in told
        ],
    }  # fmt: skip
