"""An engine, its pipes and its end, in each level of confinement."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.config import Settings
from tests.processes import gone, wait_for
from tests.workers.sandbox.conftest import StartEngine, finish
from workers.sandbox import Engine, environment

SUPERVISOR = """
import sys
from pathlib import Path
from service.config import Settings
from workers.sandbox import Engine
code = "import subprocess, os, sys, time; child = subprocess.Popen(['sleep', '600'])\\n"
code += "os.write(int(sys.argv[3]), b'up'); time.sleep(600)"
settings = Settings(sandbox=sys.argv[2], data_dir=Path(sys.argv[1]).parent)
engine = Engine([sys.executable, "-c", code], Path(sys.argv[1]), settings, lambda data: print("up", flush=True))
while engine.pump(1):
    pass
"""
REPORT = "os.write(int(sys.argv[3]), b'up')\n"


def test_reports_and_output_arrive_whole(level: str, start_engine: StartEngine) -> None:
    taken: list[bytes] = []
    running = start_engine("os.write(int(sys.argv[3]), b'x' * 300_000); print('said'); sys.exit(5)", level, taken)
    assert finish(running) == 5 and running.was_started
    assert sum(map(len, taken)) == 300_000
    assert running.log() == "said\n"
    assert running.end(0) == 5


def test_only_the_end_of_a_long_log_is_kept(level: str, start_engine: StartEngine) -> None:
    running = start_engine("[print('x' * 1000) for _ in range(2000)]; print('last')", level)
    finish(running)
    assert len(running.log()) < 200_000 and running.log().endswith("last\n")


def test_the_engine_has_its_own_session_its_report_and_no_other_way_in_or_out(
    level: str, start_engine: StartEngine
) -> None:
    code = (
        "open_ones = [n for n in range(99) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "print(os.getsid(0) in (os.getpid(), 1), repr(sys.stdin.read()), open_ones == [0, 1, 2, int(sys.argv[3])])"
    )
    running = start_engine(code, level)
    finish(running)
    assert running.log() == "True '' True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGXCPU])
def test_a_death_is_told_by_its_signal(level: str, start_engine: StartEngine, number: signal.Signals) -> None:
    running = start_engine(f"os.kill(os.getpid(), {int(number)})", level)
    assert finish(running) == -number


def test_an_engine_that_is_asked_to_leave_may_save_first(level: str, start_engine: StartEngine) -> None:
    taken: list[bytes] = []
    code = "signal.signal(signal.SIGTERM, lambda *_: (open('out/saved', 'w').close(), sys.exit(75)))\n"
    running = start_engine(f"os.makedirs('out', exist_ok=True)\n{code}{REPORT}time.sleep(60)", level, taken)
    wait_for(lambda: running.pump(0.1) and taken != [])
    running.ask_to_leave()
    assert finish(running) == 75


@pytest.mark.parametrize("grace", [0, 0.5])
def test_an_engine_that_will_not_leave_is_killed(level: str, start_engine: StartEngine, grace: float) -> None:
    taken: list[bytes] = []
    running = start_engine(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{REPORT}time.sleep(60)", level, taken)
    wait_for(lambda: running.pump(0.1) and taken != [])
    family = [running.process.pid, *(child.pid for child in psutil.Process(running.process.pid).children(True))]
    begun = time.monotonic()
    assert running.end(grace) == -signal.SIGKILL
    assert time.monotonic() - begun < grace + 2
    assert all(gone(pid) for pid in family)


def test_what_an_engine_leaves_behind_ends_with_it(bubblewrap: str, start_engine: StartEngine, folder: Path) -> None:
    daemon = "os.fork() and os._exit(0)\nos.setsid()\n"
    daemon += "while True:\n  open('scratch/beat', 'w').write(str(time.time())); time.sleep(0.01)"
    code = f"if os.fork() == 0:\n  exec({daemon!r})\n"
    code += "while not os.path.exists('scratch/beat'):\n  time.sleep(0.01)"
    assert finish(start_engine(code, bubblewrap)) == 0
    last = (folder / "scratch" / "beat").stat().st_mtime_ns
    time.sleep(0.2)
    assert (folder / "scratch" / "beat").stat().st_mtime_ns == last


def test_a_killed_supervisor_takes_the_engine_and_its_children_along(level: str, folder: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(folder), level]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"up\n"
    family = psutil.Process(supervisor.pid).children(recursive=True)
    assert {"sleep", "sh"} < {process.name() for process in family}
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    supervisor.stdout.close()
    wait_for(lambda: all(gone(process.pid) for process in family), seconds=2)


def test_the_environment_is_made_from_nothing(
    level: str, start_engine: StartEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    running = start_engine("import json; print(json.dumps(dict(os.environ)))", level)
    finish(running)
    added = {"PWD", "LC_CTYPE"}  # by bubblewrap and by Python
    seen = {name: value for name, value in json.loads(running.log()).items() if name not in added}
    assert seen == environment(folder, Settings()) and "secret" not in seen.values()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert environment(folder, Settings())["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_sandbox_that_cannot_be_set_up_is_no_death_of_the_engine(
    bubblewrap: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sandbox.bubblewrap.paths_of_python", lambda: (Path("/does/not/exist"),))
    settings = Settings(sandbox="bubblewrap", data_dir=tmp_path)
    running = Engine([sys.executable, "-c", ""], folder, settings, lambda data: None)
    assert finish(running) == 1
    assert not running.was_started and "bwrap" in running.log()


def test_nothing_is_left_open(level: str, start_engine: StartEngine) -> None:
    finish(start_engine("", level))
    before = psutil.Process().num_fds()
    finish(start_engine("", level))
    assert psutil.Process().num_fds() == before


def test_settings_that_were_not_settled_start_nothing(start_engine: StartEngine) -> None:
    with pytest.raises(ValueError, match="settle"):
        start_engine("", "auto")
