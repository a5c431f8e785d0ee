"""A job that is cancelled at any moment ends as cancelled or not at all, and its engine goes."""

import random
import time
from functools import partial
from pathlib import Path

import psutil

from tests.faults.conftest import Site
from tests.faults.recovery import Recovery
from tests.processes import gone, wait_for

MOMENTS = 14
WHILE_PUBLISHING = 5
LONGEST = 1.0
PADDING = str(128 << 20)


def processes_of(job_id: str) -> list[int]:
    """Pids of what works in a job's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(f"{job_id}-" in word for word in words):
            found.append(process.pid)
    return found


def is_publishing(site: Site, job_id: str) -> bool:
    """Whether some of its files are in storage."""
    return any(key.startswith("artifacts/") for key in site.stored(job_id))


def cancel(site: Site, job_id: str) -> tuple[int, float]:
    """Ask for the end of a job; the status of the answer, and the seconds that it took."""
    began = time.monotonic()
    answer = site.live.client.post(f"/v1/jobs/{job_id}/cancel")
    return answer.status_code, time.monotonic() - began


def assert_no_trace(site: Site, job_id: str, seconds: float = 10) -> None:
    """A cancelled job has no engine, no result and no file that anybody can fetch."""
    wait_for(lambda: not processes_of(job_id), seconds)
    assert site.job(job_id)["result"] is None
    assert site.live.client.get(f"/v1/jobs/{job_id}/model").status_code in (404, 409)
    assert site.live.client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"] == []
    wait_for(lambda: site.stored(job_id) == [])


def test_a_cancel_at_any_moment_is_the_end_or_comes_too_late(scripted: Site) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")
    ends = []
    for number in range(MOMENTS):
        job_id = scripted.script("train", steps="10", padding=PADDING)
        if number < WHILE_PUBLISHING:
            wait_for(partial(is_publishing, scripted, job_id))
            time.sleep(chance.uniform(0, 0.3))
        else:
            time.sleep(chance.uniform(0, LONGEST))
        status, seconds = cancel(scripted, job_id)
        end = scripted.ended(job_id)["status"]
        assert (status, end) in ((200, "cancelled"), (409, "succeeded"))
        assert seconds < 3
        ends.append(end)
        if end == "cancelled":
            assert_no_trace(scripted, job_id)
        else:
            scripted.assert_one_result(job_id, ["succeeded"])
        assert scripted.job(job_id)["status"] == end
    print(ends)
    assert ends[:WHILE_PUBLISHING].count("cancelled") > 0


def test_a_cancelled_engine_goes_though_it_does_not_want_to(scripted: Site, recovery: Recovery) -> None:
    job_id = scripted.script("block")
    started: Path = scripted.started(job_id)
    wait_for(lambda: started.exists() and started.read_text() != "")
    status, seconds = cancel(scripted, job_id)
    assert status == 200 and seconds < 3
    with recovery.within(10, "cancelled: an engine that blocks is gone"):
        wait_for(lambda: gone(int(started.read_text())), seconds=30)
    assert scripted.ended(job_id)["status"] == "cancelled"
    assert scripted.outcomes(job_id) == ["cancelled"]
    assert_no_trace(scripted, job_id)
