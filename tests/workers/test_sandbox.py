"""Confinement of the job process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.config import Settings
from tests.processes import gone, wait_for
from workers.sandbox import Engine, environment

SUPERVISOR = """
import sys
from pathlib import Path
from service.config import Settings
from workers.sandbox import Engine
code = "import subprocess, os, sys, time; child = subprocess.Popen(['sleep', '600']); print(child.pid);"
code += "os.write(int(sys.argv[3]), f'{os.getpid()} {child.pid}\\\\n'.encode()); time.sleep(600)"
command = [sys.executable, "-c", code]
engine = Engine(command, Path(sys.argv[1]), Settings(), lambda data: print(data.decode(), flush=True))
while engine.pump(1):
    pass
"""


def engine(code: str, folder: Path, taken: list[bytes]) -> Engine:
    """An engine that runs a line of Python; its arguments are the folder, `--report-fd` and the descriptor."""
    return Engine([sys.executable, "-c", f"import os, sys, time; {code}"], folder, Settings(), taken.append)


def finish(running: Engine) -> int:
    """Let it run to its end."""
    while running.pump(1):
        pass
    return running.end(0)


def test_reports_and_output_arrive_whole(tmp_path: Path) -> None:
    taken: list[bytes] = []
    running = engine("os.write(int(sys.argv[3]), b'x' * 300_000); print('said'); sys.exit(5)", tmp_path, taken)
    assert finish(running) == 5
    assert sum(map(len, taken)) == 300_000
    assert running.log() == "said\n"
    assert running.end(0) == 5


def test_only_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    running = engine("[print('x' * 1000) for _ in range(2000)]; print('last')", tmp_path, [])
    finish(running)
    assert len(running.log()) < 200_000 and running.log().endswith("last\n")


def test_the_engine_leads_its_own_session_without_core_dumps_or_input(tmp_path: Path) -> None:
    code = (
        "import resource; print(os.getsid(0) == os.getpid(), resource.getrlimit(resource.RLIMIT_CORE), "
        "repr(sys.stdin.read()), [n for n in range(99) if os.path.exists(f'/proc/self/fd/{n}')]"
        " == [0, 1, 2, int(sys.argv[3])])"
    )
    running = engine(code, tmp_path, [])
    finish(running)
    assert running.log() == "True (0, 0) '' True\n"


def test_the_environment_is_made_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "secret" not in environment(tmp_path, Settings()).values()
    assert "CUDA_VISIBLE_DEVICES" not in environment(tmp_path, Settings())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert environment(tmp_path, Settings())["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_killed_supervisor_takes_the_engine_and_its_children_along(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, tmp_path], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    family = [int(pid) for pid in supervisor.stdout.readline().split()]
    assert len(family) == 2 and not any(gone(pid) for pid in family)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    supervisor.stdout.close()
    wait_for(lambda: all(gone(pid) for pid in family), seconds=2)
