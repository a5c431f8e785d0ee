"""What a job may take, and that a worker outlives one that takes more."""

import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from service.config import Settings
from tests.workers.sandbox.conftest import StartEngine, finish
from workers.sandbox import is_full
from workers.sandbox.limits import EXPENDABLE, limits_of, memory_for_a_job

MEGABYTE = 1 << 20
Disk = namedtuple("Disk", "total used free")

BOMB = """
import os, resource, sys
from pathlib import Path
from service.config import Settings
from workers.sandbox import Engine, bubblewrap, limits
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
bubblewrap.paths_of_python = lambda: ()
limits._PROCESSES = 50
folder, level = Path(sys.argv[1]), sys.argv[2]
shell = 'while true; do /bin/sleep 60 & echo started; done'
engine = Engine(["/bin/sh", "-c", shell], folder, Settings(sandbox=level, data_dir=folder.parent), lambda data: None)
while engine.pump(1):
    pass
print(engine.end(0), engine.log().count("started"), "ork" in engine.log())
"""


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with one megabyte left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1 << 30, 1 << 30, MEGABYTE))


def test_an_engine_has_its_limits(level: str, start_engine: StartEngine, folder: Path) -> None:
    names = ("CORE", "NOFILE", "DATA", "CPU")
    code = f"print([resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in {names}])\n"
    code += "print(open('/proc/self/oom_score_adj').read())"
    running = start_engine(code, level, job_memory_bytes=1 << 30)
    finish(running)
    seconds = 60 * len(os.sched_getaffinity(0))
    bounds = [(0, 0), (4096, 4096), (1 << 30, 1 << 30), (seconds, seconds + 5)]
    assert running.log() == f"{bounds}\n{EXPENDABLE}\n\n"


def test_an_engine_without_a_timeout_may_compute_for_ever(folder: Path) -> None:
    assert resource.RLIMIT_CPU not in limits_of(Settings(), folder, None)
    assert limits_of(Settings(), folder, 1.5)[resource.RLIMIT_CPU] == (
        math.ceil(1.5 * len(os.sched_getaffinity(0))),
        math.ceil(1.5 * len(os.sched_getaffinity(0))) + 5,
    )


@pytest.mark.parametrize(("bound", "left"), [(1 << 30, 7 << 27), (64 << 30, 62 << 30), ("max", 62 << 30)])
def test_a_part_of_the_memory_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: int | str, left: int
) -> None:
    of_container = tmp_path / "memory.max"
    of_container.write_text(f"{bound}\n")
    monkeypatch.setattr("workers.sandbox.limits._CGROUP_LIMITS", (str(of_container), str(tmp_path / "missing")))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 << 20}[name])
    assert memory_for_a_job() == left


def test_memory_without_end_is_refused_at_once(level: str, start_engine: StartEngine) -> None:
    code = "held = []\nwhile True:\n  held.append(bytearray(1 << 24))"
    begun = time.monotonic()
    running = start_engine(code, level, job_memory_bytes=1 << 28)
    assert finish(running) == 1
    assert running.log().rstrip().endswith("MemoryError") and time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "fill", ["out.write(bytes(1 << 16)), out.flush()", "out.truncate(1 << 40)"], ids=["written", "sparse"]
)
def test_a_file_cannot_outgrow_the_room_that_there_is(
    level: str, start_engine: StartEngine, folder: Path, little_room: None, fill: str
) -> None:
    (folder / "out").mkdir()
    running = start_engine(f"out = open('out/file', 'wb')\nwhile True:\n  {fill}", level)
    assert finish(running) == 1
    assert "File too large" in running.log()
    assert (folder / "out" / "file").stat().st_size <= MEGABYTE


def test_what_is_held_in_memory_as_files_is_bounded_too(bubblewrap: str, start_engine: StartEngine) -> None:
    code = "file = open('/dev/shm/file', 'wb', buffering=0)\nwhile True:\n  file.write(bytes(1 << 20))"
    running = start_engine(code, bubblewrap)
    assert finish(running) == 1
    assert "No space left" in running.log()


def test_a_job_ends_when_half_of_the_reserve_is_gone(folder: Path, little_room: None) -> None:
    assert is_full(folder, Settings(disk_reserve_bytes=2 * MEGABYTE + 2))
    assert not is_full(folder, Settings(disk_reserve_bytes=2 * MEGABYTE))


def test_processes_without_end_are_refused(level: str, tmp_path: Path) -> None:
    """As a user who is not root, for whom alone the kernel counts."""
    folder = Path("/dev/shm") / f"bomb-{os.getpid()}-{level}"  # where every user can go
    folder.mkdir(mode=0o777)
    (folder / "in").mkdir()
    shutil.chown(folder, 65534) if os.geteuid() == 0 else None
    try:
        command = [sys.executable, "-c", BOMB, str(folder), level]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        shutil.rmtree(folder)
    code, started, refused = answer.stdout.split()
    assert code != "0" and 0 < int(started) <= 50 and refused == "True", answer.stderr
