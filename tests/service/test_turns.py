"""Whose turn it is: tenants take turns, priority counts within one, and limits hold whoever claims."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from service import jobs, turns
from service.db import Database
from service.ids import new_id
from service.jobs import Claim
from service.states import HELD
from service.tables import Job, Tenant
from tests.databases import on_databases
from tests.service.samples import a_job, a_model, a_worker, store

LEASE = 60.0


def queued(database: Database, tenant: str, count: int = 1, **changes: Any) -> list[str]:
    """Ids of new jobs of a tenant, oldest first."""
    model = store(database, a_model(tenant=tenant))
    made = [a_job(model.id, tenant, **changes) for _ in range(count)]
    with database.session_scope() as session:
        return [jobs.submit(session, job).id for job in made]


def flooded(database: Database, tenants: int, count: int) -> None:
    """Queue many jobs, four fifths of them the first tenant's, faster than by submitting each."""
    models = [a_model(tenant=f"t{number}") for number in range(tenants)]
    store(database, *models)
    job = a_job(models[0].id)
    values = {column.key: getattr(job, column.key) for column in Job.__mapper__.column_attrs}
    like = {name: value for name, value in values.items() if value is not None}
    rows = []
    for number in range(count):
        model = models[0] if number % 5 else models[number // 5 % tenants]
        own = {"id": new_id("job"), "tenant": model.tenant, "model_id": model.id, "priority": number % 3}
        rows.append(like | own)
    with database.session_scope() as session:
        session.execute(insert(Job), rows)


def take(database: Database, worker: str = "w1", running_limit: int | None = None) -> Claim | None:
    """The next claim of a worker."""
    with database.session_scope() as session:
        return jobs.claim_next(session, worker, LEASE, running_limit)


def taken(database: Database, count: int, **named: Any) -> list[str]:
    """Ids of the next jobs that are claimed, in order."""
    claims = [take(database, **named) for _ in range(count)]
    return [claim.job_id for claim in claims if claim is not None]


@on_databases
def test_a_single_job_does_not_wait_behind_two_hundred_of_another_tenant(database: Database) -> None:
    crowd = queued(database, "a", 200)
    (single,) = queued(database, "b")
    assert taken(database, 3) == [crowd[0], single, crowd[1]]


@on_databases
def test_tenants_alternate_and_priority_counts_within_each(database: Database) -> None:
    a = queued(database, "a", 3)
    (urgent,) = queued(database, "a", priority=9)
    b = queued(database, "b", 2)
    assert taken(database, 7) == [urgent, b[0], a[0], b[1], a[1], a[2]]


@on_databases
def test_what_runs_counts_as_turns_had(database: Database) -> None:
    a = queued(database, "a", 4)
    assert taken(database, 2) == a[:2]
    b = queued(database, "b", 3)
    assert taken(database, 5) == [b[0], b[1], a[2], b[2], a[3]]


@on_databases
def test_places_are_those_in_which_jobs_are_claimed(database: Database) -> None:
    ids = [*queued(database, "a", 3), *queued(database, "b", 2), *queued(database, "c", 1, priority=4)]
    with database.session_scope(read_only=True) as session:
        places = turns.places(session, ids)
    assert sorted(places.values()) == [1, 2, 3, 4, 5, 6]
    claimed = taken(database, 6)
    assert [places[job_id] for job_id in claimed] == [1, 2, 3, 4, 5, 6]


@on_databases
def test_a_job_that_is_not_due_stands_behind_and_is_not_claimed(database: Database) -> None:
    (later,) = queued(database, "a", not_before=1e12)
    (now,) = queued(database, "a")
    with database.session_scope(read_only=True) as session:
        assert turns.places(session, [later, now]) == {now: 1, later: 2}
        assert turns.due(session, None) == [now]
    assert taken(database, 2) == [now]


@on_databases
def test_cuda_waits_for_a_worker_that_has_it(database: Database) -> None:
    configuration = a_job(new_id("mdl")).configuration | {"device": "cuda"}
    cuda = queued(database, "a", 60, configuration=configuration)
    (plain,) = queued(database, "a")
    store(database, a_worker("cpu", "cpu"), a_worker("gpu", "cpu", "cuda"))
    assert taken(database, 2, worker="cpu") == [plain]
    assert taken(database, 2, worker="gpu") == cuda[:2]
    assert taken(database, 1, worker="unheard-of") == []


@on_databases
def test_a_tenant_at_its_limit_is_passed_over(database: Database) -> None:
    a, b, c = queued(database, "a", 3), queued(database, "b", 3), queued(database, "c", 3)
    store(
        database,
        Tenant(name="b", limits={"running_jobs": 1}),
        Tenant(name="c", limits={"running_jobs": None, "queued_jobs": 5}),
    )
    assert set(taken(database, 9, running_limit=2)) == {*a[:2], *b[:1], *c}
    with database.session_scope(read_only=True) as session:
        assert turns.due(session, 2) == []
        assert set(turns.due(session, None)) == {a[2]}
    assert taken(database, 1, running_limit=0) == []


@on_databases
def test_workers_at_once_take_different_jobs_and_keep_the_limit(database: Database) -> None:
    a, b = queued(database, "a", 5), queued(database, "b", 5)
    together = Barrier(4)

    def work(name: str) -> list[str]:
        together.wait()
        return taken(database, 3, worker=name, running_limit=3)

    with ThreadPoolExecutor(4) as pool:
        claimed = [job_id for ids in pool.map(work, ("w1", "w2", "w3", "w4")) for job_id in ids]
    assert sorted(claimed) == sorted([*a[:3], *b[:3]])
    with database.session_scope(read_only=True) as session:
        running = session.execute(select(Job.tenant, func.count()).where(Job.status.in_(HELD)).group_by(Job.tenant))
        assert {row[0]: row[1] for row in running} == {"a": 3, "b": 3}


@on_databases
def test_a_job_that_goes_between_look_and_claim_is_skipped(database: Database, monkeypatch: Any) -> None:
    gone, left = queued(database, "a", 2)
    real = turns.first

    def first(session: Any, **named: Any) -> str | None:
        found = real(session, **named)
        if found == gone:
            jobs.cancel(session, session.get_one(Job, gone))
        return found

    monkeypatch.setattr(turns, "first", first)
    assert taken(database, 1) == [left]


@on_databases
def test_ten_thousand_queued_jobs_do_not_hold_a_claim_up(database: Database) -> None:
    flooded(database, tenants=20, count=10_000)
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE jobs")
    assert take(database) is not None
    assert _least_seconds(lambda: take(database)) < 0.2  # four times what is promised: the machine is shared
    with database.session_scope(read_only=True) as session:
        last = session.scalar(select(func.max(Job.id)).where(Job.status == "queued"))
        assert last is not None
        assert _least_seconds(lambda: turns.places(session, [last])) < 0.2


@on_databases
def test_places_in_a_long_queue_are_told_again_and_a_newcomer_has_none_yet(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_LONGEST_BELIEVED", 1e-9)
    flooded(database, tenants=1, count=turns._SHORT)
    with database.session_scope(read_only=True) as session:
        ids = list(session.scalars(select(Job.id).where(Job.priority == 2).order_by(Job.id)))
        assert turns.places(session, ids[:2]) == {ids[0]: 1, ids[1]: 2}
    assert take(database) is not None
    monkeypatch.setattr(turns, "_LONGEST_BELIEVED", 3600.0)
    monkeypatch.setattr(turns, "_BELIEVED_PER_JOB", 3600.0)
    (newcomer,) = queued(database, "t0", priority=9)
    with database.session_scope(read_only=True) as session:
        assert turns.places(session, [ids[1], newcomer]) == {newcomer: 1, ids[1]: 2}
    (later,) = queued(database, "t0", priority=9)
    with database.session_scope(read_only=True) as session:
        assert turns.places(session, [ids[1], later]) == {ids[1]: 2}
        assert turns.places(session, []) == {}


@on_databases
def test_a_flood_does_not_starve_others_of_the_only_worker_whatever_its_priority(database: Database) -> None:
    crowd = queued(database, "a", 5, priority=9)
    b, (c,) = queued(database, "b", 2), queued(database, "c")
    expected = [crowd[0], b[0], c, crowd[1], b[1], *crowd[2:]]
    done: list[str] = []
    while (claim := take(database)) is not None:
        with database.session_scope(read_only=True) as session:
            waiting = turns.places(session, expected)
        assert sorted(waiting, key=lambda job_id: waiting[job_id]) == expected[len(done) + 1 :]
        with database.session_scope() as session:
            assert jobs.finish(session, claim, "succeeded", {}, None, [])
        done.append(claim.job_id)
    assert done == expected


@on_databases
def test_a_tenants_turn_is_by_the_jobs_that_the_worker_may_run(database: Database) -> None:
    configuration = a_job(new_id("mdl")).configuration | {"device": "cuda"}
    queued(database, "a", 3, configuration=configuration, priority=9)
    (first, second), (other,) = queued(database, "a", 2), queued(database, "b")
    store(database, a_worker("cpu", "cpu"))
    assert taken(database, 4, worker="cpu") == [first, other, second]


def _least_seconds(step: Callable[[], object], times: int = 7) -> float:
    spans = []
    for _ in range(times):
        begun = time.perf_counter()
        step()
        spans.append(time.perf_counter() - begun)
    return min(spans)
