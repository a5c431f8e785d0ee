"""Attempts and what they leave: one effect of each job, and nothing from a worker whose time was over."""

from collections.abc import Iterator
from itertools import pairwise

from tests.nemesis.evidence import Evidence, Row, Rule
from tests.nemesis.orders import GIVES_UP_SECONDS

SUCCESS = ("succeeded", "rejected")
_MOST_ATTEMPTS = 3
_BY_THE_NEMESIS = {"worker_lost", "engine_killed"}
_NOT_COUNTED = {"paused", "returned"}


def tokens_that_do_not_grow(evidence: Evidence) -> Iterator[str]:
    """Every claim of a job has the next token, and the events tell of each."""
    for id_, row in evidence.jobs.items():
        tokens = [attempt["token"] for attempt in evidence.attempts[id_]]
        if tokens != list(range(1, row["token"] + 1)):
            yield f"{id_} has the token {row['token']}, and attempts with {tokens}"
        started = sum(event["type"] == "job.started" for event in evidence.events[id_])
        if started != len(tokens):
            yield f"{id_} has {len(tokens)} attempts, and {started} of them are told of"


def overlapping_attempts(evidence: Evidence) -> Iterator[str]:
    """An attempt begins when the one before it has ended, and the last has ended with its job."""
    for id_, attempts in evidence.attempts.items():
        for before, after in pairwise(attempts):
            if before["finished_at"] is None or before["finished_at"] > after["started_at"]:
                yield f"{id_}: attempt {after['token']} began before attempt {before['token']} had ended"
        ended = evidence.jobs[id_]["finished_at"] is not None
        if ended and attempts and attempts[-1]["finished_at"] is None:
            yield f"{id_} has ended, and its last attempt has not"


def stale_writes(evidence: Evidence) -> Iterator[str]:
    """Nothing is stored by an attempt after another has begun."""
    begun = {(a["job_id"], a["token"]): a["started_at"] for all_ in evidence.attempts.values() for a in all_}
    for points in evidence.state["points"]:
        following = begun.get((points["job_id"], points["token"] + 1))
        if following is not None and points["last"] > following:
            yield f"{points['job_id']}: attempt {points['token']} stored a point after the next had begun"


def double_effects(evidence: Evidence) -> Iterator[str]:
    """A job has one success at most; its artifacts and its model are that attempt's, and other jobs have none."""
    for id_, row in evidence.jobs.items():
        winners = [attempt["token"] for attempt in evidence.attempts[id_] if attempt["outcome"] in SUCCESS]
        if winners != ([row["token"]] if row["status"] in SUCCESS else []):
            yield f"{id_} is {row['status']} with the token {row['token']}, and the attempts {winners} had success"
        tokens = {artifact["key"].split("/")[2] for artifact in evidence.artifacts[id_]}
        if tokens != {str(token) for token in winners[-1:]}:
            yield f"{id_}: the attempts {winners} had success, and there are artifacts of {sorted(tokens)}"
        yield from _models(evidence, row)


def _models(evidence: Evidence, row: Row) -> Iterator[str]:
    made = [model["id"] for model in evidence.state["models"] if model["job_id"] == row["id"]]
    told = (row["result"] or {}).get("model_id")
    if made != ([] if told is None else [told]):
        yield f"{row['id']} tells of the model {told}, and made {made}"


def changed_results(evidence: Evidence) -> Iterator[str]:
    """The model that an answer told of is the one that the job has made."""
    for id_, sights in evidence.sights.items():
        told = {job["model_id"] for _, job in sights} - {None}
        if len(told) > 1:
            yield f"{id_} was told to have made {sorted(told)}"


def failures_without_reason(evidence: Evidence) -> Iterator[str]:
    """A job fails by its own timeout, or because three attempts in a row were killed; nothing else was damaged."""
    for id_, row in evidence.jobs.items():
        code = (row["error"] or {}).get("code")
        if row["status"] == "failed" and not _explained(code, evidence, id_):
            outcomes = [attempt["outcome"] for attempt in evidence.attempts[id_]]
            yield f"{id_} failed with {code}: {(row['error'] or {}).get('message')} ({outcomes})"


def _explained(code: str | None, evidence: Evidence, id_: str) -> bool:
    if code == "TIMEOUT":
        return bool(evidence.jobs[id_]["configuration"]["timeout"] == GIVES_UP_SECONDS)
    outcomes = [attempt["outcome"] for attempt in evidence.attempts[id_] if attempt["outcome"] not in _NOT_COUNTED]
    last = ["engine_killed" if outcome == "failed" else outcome for outcome in outcomes[-_MOST_ATTEMPTS:]]
    return code == "CRASH_LOOP" and len(last) == _MOST_ATTEMPTS and set(last) <= _BY_THE_NEMESIS


RULES: tuple[Rule, ...] = (
    tokens_that_do_not_grow,
    overlapping_attempts,
    stale_writes,
    double_effects,
    changed_results,
    failures_without_reason,
)
