"""The judge finds every kind of violation in a small history that holds it, and none in one that holds none."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.nemesis import checker
from tests.nemesis.story import DATASET, DELIVERY, JOB, MODEL, STRANGER, UPLOAD, Story, event_id

Break = Callable[[Story], Any]
OTHER = "job_" + "9" * 26


def lost(story: Story) -> None:
    for table in ("jobs", "attempts", "events", "artifacts", "points", "deliveries", "received"):
        story.state[table] = []
    del story.state["models"][1]
    del story.state["stored"][f"artifacts/{JOB}/2/w"]


def refused_order(story: Story) -> None:
    story.ask("order", 23, 24, key="k", path="/v1/jobs", answer={"id": JOB, "status": 202, "sha256": "other"})


def second_job(story: Story) -> None:
    story.state["jobs"].append({**story.row("jobs"), "id": OTHER})


def early_success(story: Story) -> None:
    story.row("attempts")["outcome"] = "rejected"


def two_models(story: Story) -> None:
    story.state["models"].append({**story.row("models", 1), "id": "mdl_" + "8" * 26})


def unasked_pause(story: Story) -> None:
    story.ask("read", 7, 8, job=JOB, answer=story.seen("paused", ["worker_lost"], version=5))


def cancelled_before(story: Story) -> None:
    story.ask("cancel", 7, 8, job=JOB, answer=story.seen("cancelling", [None]))


def back_from_the_end(story: Story) -> None:
    story.ask("read", 23, 24, job=JOB, answer=story.seen("running", ["worker_lost", None]))


def older_version(story: Story) -> None:
    story.ask("read", 23, 24, job=JOB, answer=story.seen("succeeded", ["worker_lost", "succeeded"], version=6))


def forgotten_attempt(story: Story) -> None:
    story.ask("read", 23, 24, job=JOB, answer=story.seen("succeeded", ["succeeded"]))


def torn(story: Story) -> None:
    story.ask("read", 6.5, 6.9, job=JOB, answer=story.seen("queued", [None]))


def deleted(story: Story) -> None:
    story.ask("delete job", 23, 24, job=JOB, answer={"status": 204})
    story.ask("read", 25, 26, job=JOB, answer=story.seen("succeeded", ["worker_lost", "succeeded"]))


def told_a_stranger(story: Story) -> None:
    story.ask("list", 23, 24, answer={"ids": [STRANGER], "listed": [JOB], "next": None})


def crash_loop(story: Story) -> None:
    story.row("jobs").update(status="failed", error={"code": "CRASH_LOOP", "message": "…"}, result=None)


def failed(story: Story) -> None:
    story.row("jobs").update(status="failed", error={"code": "ENGINE_ERROR", "message": "…"}, result=None)


def unfinished(story: Story) -> None:
    story.row("jobs").update(status="running", finished_at=None)


def two_checkpoints(story: Story) -> None:
    kept: dict[str, Any] | None = None
    for step in (1, 2):
        key, file = f"checkpoints/{JOB}/1/{step}", {"size": 1, "sha256": "e"}
        kept = {"key": key, "files": [{"path": "w", **file}], "before": kept}
        story.state["stored"][f"{key}/w"] = file
    story.row("jobs")["checkpoint"] = kept


def checkpoint_lost(story: Story) -> None:
    two_checkpoints(story)
    del story.state["stored"][f"checkpoints/{JOB}/1/1/w"]


def told_before_it_was(story: Story) -> None:
    story.state["received"].append({**story.state["received"][0], "event_id": event_id(99)})


def without_its_webhook(story: Story) -> None:
    del story.state["deliveries"][1]


CASES: dict[str, tuple[Break, set[str]]] = {
    "an acknowledged job is gone": (lost, {"lost orders"}),
    "an acknowledged data set is gone": (
        lambda story: story.ask("order", 23, 24, key="d", path="/v1/datasets", answer={"id": "ds_" + "9" * 26}),
        {"lost orders"},
    ),
    "a read does not find an acknowledged job": (
        lambda story: story.ask("read", 23, 24, "fail", job=JOB, answer={"status": 404, "code": "NOT_FOUND"}),
        {"missing reads"},
    ),
    "a deleted job is shown": (deleted, {"found after deletion"}),
    "a list misses an acknowledged job": (
        lambda story: story.ask("list", 23, 24, answer={"listed": [], "next": None}),
        {"incomplete lists"},
    ),
    "one key has two answers": (refused_order, {"keys with two answers"}),
    "an order is refused when it comes again": (
        lambda story: story.ask("order", 23, 24, "fail", key="k", path="/v1/jobs", answer={"status": 404}),
        {"refused repetitions"},
    ),
    "one key made two jobs": (second_job, {"keys with two jobs"}),
    "an order is not in the audit log": (lambda story: story.state["audit"].pop(0), {"unlogged orders"}),
    "an order is twice in the audit log": (
        lambda story: story.state["audit"].append(story.row("audit")),
        {"unlogged orders"},
    ),
    "an acknowledged chunk is asked for again": (
        lambda story: story.ask("offset", 23, 24, upload=UPLOAD, answer={"upload-offset": "63"}),
        {"lost bytes"},
    ),
    "a completed model is not ready": (
        lambda story: story.row("models").update(state="invalid"),
        {"incomplete uploads"},
    ),
    "a 500": (lambda story: story.ask("list", 23, 24, "info", answer={"status": 500}), {"faults of the service"}),
    "a 503 that does not say when to come back": (
        lambda story: story.ask("list", 23, 24, "info", answer={"status": 503}),
        {"faults of the service"},
    ),
    "a stranger is let in": (lambda story: story.ask("stranger", 23, 24), {"unexpected statuses"}),
    "another body under a key is taken": (
        lambda story: story.ask("reuse key", 23, 24, answer={"status": 202}),
        {"unexpected statuses"},
    ),
    "an answer tells of another tenant's job": (told_a_stranger, {"others ids"}),
    "a download is not what its ETag says": (
        lambda story: story.ask("download", 23, 24, path="/other", answer={"sha256": "a", "etag": '"b"'}),
        {"damaged downloads"},
    ),
    "a download changes": (
        lambda story: story.ask("download", 23, 24, path="/m", answer={"sha256": "a", "etag": '"a"'}),
        {"changed downloads"},
    ),
    "a job leaves its end": (back_from_the_end, {"states that go back"}),
    "a version falls": (older_version, {"states that go back"}),
    "an attempt is forgotten": (forgotten_attempt, {"states that go back"}),
    "a job pauses unasked, as a read shows": (unasked_pause, {"states that go back"}),
    "a cancel is acknowledged, and the job succeeds": (cancelled_before, {"states that go back"}),
    "a view mixes two moments": (torn, {"torn views"}),
    "a running job's cancel is refused": (
        lambda story: story.ask(
            "cancel", 4, 5, "fail", job=JOB, answer={"code": "JOB_FINISHED", "job_status": "queued"}
        ),
        {"wrong refusals"},
    ),
    "an event does not follow": (lambda story: story.row("events", 3).update(type="job.resumed"), {"broken events"}),
    "the row is not where its events end": (
        lambda story: story.row("jobs").update(status="rejected"),
        {"broken events"},
    ),
    "an engine tells of a queued job": (
        lambda story: story.row("events", 1).update(type="engine.told"),
        {"events out of turn"},
    ),
    "a job is paused unasked, as its events tell": (
        lambda story: story.row("events", 2).update(type="job.pausing"),
        {"unasked changes"},
    ),
    "an event changes": (lambda story: story.row("events", 2).update(type="engine.other"), {"changed events"}),
    "an event comes between": (lambda story: story.row("events", 2).update(id=event_id(1)), {"changed events"}),
    "a job does not end": (unfinished, {"unfinished jobs"}),
    "a token is left out": (lambda story: story.row("attempts").update(token=0), {"tokens that do not grow"}),
    "an attempt is not told of": (
        lambda story: story.row("events", 4).update(type="engine.told"),
        {"tokens that do not grow"},
    ),
    "two attempts at once": (lambda story: story.row("attempts").update(finished_at=7.5), {"overlapping attempts"}),
    "an attempt outlives its job": (
        lambda story: story.row("attempts", 1).update(finished_at=None),
        {"overlapping attempts"},
    ),
    "an old attempt still writes": (lambda story: story.row("points").update(last=7.5), {"stale writes"}),
    "two attempts had success": (early_success, {"double effects"}),
    "an old attempt's artifacts": (
        lambda story: story.row("artifacts").update(key=f"artifacts/{JOB}/1/w"),
        {"double effects", "rows without bytes"},
    ),
    "two models": (two_models, {"double effects"}),
    "a model of a job that made none": (
        lambda story: story.row("jobs").update(result=None),
        {"double effects"},
    ),
    "the model that was told of changes": (
        lambda story: story.entries[3]["jobs"][0].update(model_id="mdl_" + "8" * 26),
        {"changed results"},
    ),
    "a failure without a reason": (failed, {"failures without reason"}),
    "given up too early": (crash_loop, {"failures without reason"}),
    "an artifact's bytes are gone": (
        lambda story: story.state["stored"].pop(f"artifacts/{JOB}/2/w"),
        {"rows without bytes"},
    ),
    "an artifact has other bytes": (
        lambda story: story.row("artifacts").update(sha256="e" * 64),
        {"rows without bytes"},
    ),
    "a model's bytes are gone": (lambda story: story.state["stored"].pop(f"models/{MODEL}/w"), {"rows without bytes"}),
    "a data set is cut short": (
        lambda story: story.row("datasets")["splits"]["train"].update(size=4),
        {"rows without bytes"},
    ),
    "a checkpoint is noted and gone": (checkpoint_lost, {"rows without bytes"}),
    "bytes that nobody owns": (
        lambda story: story.state["stored"].update({f"artifacts/{JOB}/1/w": {"size": 3, "sha256": "d" * 64}}),
        {"bytes without rows"},
    ),
    "an event is not told": (without_its_webhook, {"missing deliveries"}),
    "an event is told twice": (
        lambda story: story.state["deliveries"].append({**story.row("deliveries"), "id": DELIVERY}),
        {"missing deliveries"},
    ),
    "a delivery is left behind": (
        lambda story: story.row("deliveries").update(status="pending"),
        {"overdue deliveries"},
    ),
    "a delivery is given up": (lambda story: story.row("deliveries").update(status="failed"), {"overdue deliveries"}),
    "a delivery that never came": (
        lambda story: story.state["received"].pop(),
        {"deliveries that never came"},
    ),
    "an event is told in two ways": (
        lambda story: story.state["received"].append({**story.state["received"][0], "sha256": "e" * 64}),
        {"webhooks that differ"},
    ),
    "what did not happen is told": (told_before_it_was, {"untrue webhooks"}),
    "another tenant is told": (
        lambda story: story.state["received"].append({**story.state["received"][0], "path": "/blue/all"}),
        {"untrue webhooks"},
    ),
}


def found(story: Story) -> set[str]:
    return {violation.rule for violation in checker.judge(story.entries, story.state)}


def test_nothing_is_found_where_every_promise_is_kept() -> None:
    story = Story()
    assert checker.judge(story.entries, story.state) == []


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_is_found(case: str) -> None:
    story = Story()
    damage, rules = CASES[case]
    damage(story)
    assert rules <= found(story)


def test_every_rule_has_a_case() -> None:
    named = {rule for _, rules in CASES.values() for rule in rules}
    assert named == {checker.name_of(rule) for rule in checker.RULES}


def asked_for_in_time(story: Story) -> None:
    story.ask("cancel", 12.5, 13, job=JOB, answer={"status": 409}, outcome="fail")
    story.ask("delete job", 23, 24, "info", job=JOB, answer={"status": 503, "retry-after": "5"})
    story.ask("read", 25, 26, "fail", job=JOB, answer={"status": 404, "code": "NOT_FOUND"})


def deleted_by_its_client(story: Story) -> None:
    story.ask("delete dataset", 23, 24, dataset=DATASET, answer={"status": 204})
    story.state["datasets"], story.state["stored"] = [], dict(story.state["stored"])
    story.state["stored"].pop(f"datasets/{DATASET}/train.jsonl")


def overlapping_reads(story: Story) -> None:
    story.ask("read", 11.5, 12.5, job=JOB, answer=story.seen("running", ["worker_lost", None]))


def replayed(story: Story) -> None:
    story.ask("order", 23, 24, key="k", path="/v1/jobs", answer=story.seen("queued", [], id=JOB, status=202))


HARMLESS = (asked_for_in_time, deleted_by_its_client, overlapping_reads, replayed, two_checkpoints)


@pytest.mark.parametrize("harmless", HARMLESS)
def test_what_may_happen_is_not_held_against_the_service(harmless: Break) -> None:
    story = Story()
    harmless(story)
    assert checker.judge(story.entries, story.state) == []


@pytest.mark.parametrize(("retried", "wrong"), [("fail", True), ("info", False), ("ok", False)])
def test_a_job_leaves_its_end_only_when_it_may_have_been_tried_again(retried: str, wrong: bool) -> None:
    story = Story()
    story.ask("cancel", 6.1, 6.2, job=JOB)
    story.ask("read", 6.3, 6.4, job=JOB, answer=story.seen("cancelled", ["worker_lost"]))
    story.ask("retry", 6.5, 6.6, retried, job=JOB)
    assert ("states that go back" in found(story)) == wrong
