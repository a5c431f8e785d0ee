"""Past jobs correct the arithmetic."""

import random
from datetime import timedelta

import pytest

from service.db import Database
from service.estimate.learned import Past, learn, past_jobs
from service.tables import utc_now
from tests.databases import on_databases
from tests.service.samples import RESULT, submitted

EXPECTED = {"loading": 1.0, "finetuning": 10.0, "verifying": 5.0}


def past(slower: float = 3.0, training: float = 1.0, memory: float = 1.5) -> Past:
    """A job of which every phase took so many times as long."""
    taken = {name: seconds * slower for name, seconds in EXPECTED.items()}
    return Past(EXPECTED, {**taken, "finetuning": taken["finetuning"] * training}, 1e9, memory * 1e9)


def test_without_jobs_the_arithmetic_stands_with_a_wide_range() -> None:
    nothing = learn([])
    assert nothing.seconds(EXPECTED) == sum(EXPECTED.values())
    assert (nothing.spread, nothing.memory, nothing.jobs) == (4.0, 1.0, 0)


def test_three_jobs_bring_the_figures_within_a_factor_of_two() -> None:
    learned = learn([past()] * 3)
    assert learned.seconds(EXPECTED) == pytest.approx(3 * 16)
    assert learned.spread < 2
    assert learned.memory == 1.5


def test_each_phase_has_a_factor_of_its_own() -> None:
    learned = learn([past(training=4.0)] * 3)
    assert learned.seconds({"finetuning": 1.0}) == pytest.approx(12)
    assert learned.seconds({"verifying": 1.0}) == pytest.approx(3)
    assert learned.seconds({"exporting": 1.0}) == pytest.approx(3 * 46 / 16), "never seen: all together"


def test_one_job_on_a_busy_machine_counts_for_little() -> None:
    learned = learn([*[past()] * 9, past(slower=300)])
    assert learned.seconds(EXPECTED) == pytest.approx(48)
    assert learned.spread < 2


def test_jobs_that_differ_widen_the_range() -> None:
    chance = random.Random(0)
    noisy = learn([past(slower=chance.uniform(1, 9)) for _ in range(10)])
    assert noisy.spread > learn([past()] * 10).spread


@on_databases
def test_only_jobs_that_ran_through_on_such_a_device_are_looked_at(database: Database) -> None:
    started = utc_now()
    ran = {"started_at": started, "finished_at": started + timedelta(seconds=30), "token": 1, "status": "succeeded"}
    job = submitted(database)
    engine = {"device": "NVIDIA H100", "peak_memory": 7, "seconds": {"loading": 2.0, "analyzing": 1.0, "pruning": 3.0}}
    changes = [
        ran | {"result": RESULT | {"engine": engine}},
        ran | {"result": RESULT},
        ran | {"result": RESULT, "status": "failed"},
        ran | {"result": RESULT, "token": 2},
        ran | {"result": RESULT, "kind": "inspection"},
        ran | {"result": RESULT, "spec": job.spec | {"gone": 1}},
    ]
    for change in changes:
        submitted(database, **{"status": "succeeded", **change})
    with database.session_scope() as session:
        (on_gpu,) = past_jobs(session, "cuda")
        (on_cpu,) = past_jobs(session, "cpu")
    assert on_gpu.taken == {"loading": 2.0, "pruning": 4.0, "starting": 24.0}
    assert (on_gpu.taken_memory, on_cpu.taken_memory) == (7, 1)
