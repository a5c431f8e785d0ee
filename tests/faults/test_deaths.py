"""However an engine dies, its job has a typed end, its worker lives, and other jobs go on."""

import itertools
import json
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.conftest import Site, engines_below
from tests.models import tiny_model
from tests.processes import gone, wait_for
from tests.workers.engine.tiny_tasks import write

ATTEMPTS = 3
POISONS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL)


def error(site: Site, job_id: str) -> tuple[str, str]:
    """Code and blame of a job that failed."""
    job = site.ended(job_id)
    assert job["status"] == "failed", job["status"]
    return job["error"]["code"], job["error"]["blame"]


def pauses(site: Site, job_id: str) -> list[timedelta]:
    """Times between a job's attempts."""
    attempts = site.job(job_id)["attempts"]
    times = [
        (datetime.fromisoformat(one["started_at"]), datetime.fromisoformat(one["finished_at"])) for one in attempts
    ]
    return [later[0] - earlier[1] for earlier, later in itertools.pairwise(times)]


def test_poison_is_given_up_and_harms_no_neighbour(scripted: Site) -> None:
    assert scripted.live.worker is not None
    worker, process = scripted.live.worker.pid, job_process(scripted)
    poisons = [scripted.script("die", signal=str(int(number))) for number in POISONS]
    neighbours = [scripted.script("succeed") for _ in range(5)]
    for job_id in neighbours:
        scripted.assert_one_result(job_id, ["succeeded"])
    for job_id in poisons:
        assert error(scripted, job_id) == ("CRASH_LOOP", "service")
        assert len(scripted.outcomes(job_id)) == ATTEMPTS
        first, second = pauses(scripted, job_id)
        assert first >= timedelta(seconds=1.9) and second >= timedelta(seconds=3.9)
        assert scripted.stored(job_id) == []
    assert (scripted.live.worker.poll(), job_process(scripted)) == (None, process), worker


def job_process(site: Site) -> int:
    """The process of the worker in which supervisors run."""
    assert site.live.worker is not None
    children = psutil.Process(site.live.worker.pid).children()
    return next(child.pid for child in children if any("spawn_main" in word for word in child.cmdline()))


def test_poison_that_kills_its_worker_is_counted_all_the_same(scripted: Site) -> None:
    job_id = scripted.script("kill_worker")
    assert error(scripted, job_id) == ("CRASH_LOOP", "service")
    assert scripted.outcomes(job_id) == ["worker_lost"] * ATTEMPTS
    scripted.assert_one_result(scripted.script("succeed"), ["succeeded"])


def test_memory_beyond_the_limit_is_told_with_both(scripted: Site) -> None:
    before = job_process(scripted)
    job_id = scripted.script("allocate")
    assert error(scripted, job_id) == ("OUT_OF_MEMORY", "user")
    message = scripted.job(job_id)["error"]["message"]
    assert "of 2048 MiB" in message
    assert job_process(scripted) == before
    scripted.assert_one_result(scripted.script("succeed"), ["succeeded"])


@pytest.mark.parametrize("behaviour", ["hang", "ignore_sigterm", "busy", "block", "hang_with_child"])
def test_time_that_is_over_is_the_end_of_any_engine(scripted: Site, behaviour: str) -> None:
    job_id = scripted.script(behaviour, timeout=1, child=str(scripted.folder / "child"))
    assert error(scripted, job_id) == ("TIMEOUT", "user")
    assert scripted.outcomes(job_id) == ["failed"]
    assert gone(int(scripted.started(job_id).read_text()))
    if behaviour == "hang_with_child":
        assert gone(int((scripted.folder / "child").read_text()))


def test_processor_time_that_is_over_is_the_end_where_nobody_watches(scripted: Site) -> None:
    job_id = scripted.script("busy", timeout=1)
    wait_for(lambda: scripted.started(job_id).exists() and scripted.started(job_id).read_text() != "")
    assert scripted.live.worker is not None
    (engine,) = engines_below(scripted.live.worker.pid)
    supervisor = psutil.Process(job_process(scripted))
    supervisor.suspend()
    wait_for(lambda: gone(engine.pid))
    supervisor.resume()
    assert error(scripted, job_id) == ("TIMEOUT", "user")


def test_a_job_whose_time_is_over_keeps_its_checkpoint_for_a_retry(scripted: Site) -> None:
    job_id = scripted.script("train", timeout=2, steps="120", pause="0.025")
    assert error(scripted, job_id) == ("TIMEOUT", "user")
    at = scripted.saved(job_id)
    assert at > 0 and any(key.startswith("checkpoints/") for key in scripted.stored(job_id))
    assert scripted.live.client.post(f"/v1/jobs/{job_id}/retry", json={}).status_code in (200, 202)
    scripted.assert_one_result(job_id, ["failed", "succeeded"])
    assert [int(step) for step in scripted.started(job_id).read_text().split()] == [0, at]


def test_gpu_memory_that_runs_out_halves_the_batches(scripted: Site) -> None:
    job_id = scripted.submit(epochs=1, metadata={"behaviour": "run_out_of_gpu_memory", "fits": "8"})
    scripted.assert_one_result(job_id, ["out_of_memory", "succeeded"])
    assert "BATCH_HALVED" in [warning["code"] for warning in scripted.job(job_id)["warnings"]]


def split_by(pattern: str) -> dict[str, Any]:
    """A tokenizer that cuts texts by a regular expression."""
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


GROWS = {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000}}
SLOW = "a" * 22 + "b"
"""Four million steps of the pattern, which is less than its library gives up after."""
BOMBS = [
    (split_by("(a+)+$"), [SLOW] * 400, 8, "TIMEOUT"),
    (split_by("(a+)+$"), ["a" * 60 + "b"], 120, "TOKENIZER_UNUSABLE"),
    (GROWS, ["a" * 4000], 120, "OUT_OF_MEMORY"),
]


def bomb(site: Site, folder: Path, tokenizer: dict[str, Any], texts: list[str], timeout: int) -> str:
    """A job with such texts and a tokenizer whose parts are these; its id."""
    model = tiny_model(folder / "model")
    file = model / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer))
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    rows = [{"text": text, "label": number % 2} for number, text in enumerate([*texts, "the film"])]
    write(folder / "dataset", train=rows)
    parts = {"model_id": site.push_model(model), "dataset_id": site.push_dataset(folder / "dataset")}
    recipe = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 1}
    return site.order(**parts, finetuning=recipe, timeout=timeout)


def test_a_tokenizer_that_is_a_bomb_ends_its_job_alone(site: Site, tmp_path: Path) -> None:
    worker = job_process(site)
    armed = [bomb(site, tmp_path / str(number), *parts[:3]) for number, parts in enumerate(BOMBS)]
    for job_id, (*_, code) in zip(armed, BOMBS, strict=True):
        assert error(site, job_id) == (code, "user"), site.job(job_id)["error"]
        assert len(site.outcomes(job_id)) == 1
    assert "2048 MiB" in site.job(armed[-1])["error"]["message"]
    site.assert_one_result(site.order(), ["succeeded"])
    assert job_process(site) == worker
