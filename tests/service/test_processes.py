"""Children that cannot outlive their starter."""

import resource
import signal
import subprocess
import sys

import pytest

from service.processes import start, stop
from tests.processes import gone, wait_for

STARTER = """
import sys, time
from service.processes import start
print(start([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"


def test_a_child_dies_with_its_starter() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    assert not gone(child)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    wait_for(lambda: gone(child), seconds=2)


def test_stop_kills_who_does_not_listen() -> None:
    process = start([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert stop(process, grace=0.2) == -signal.SIGKILL
    process.stdout.close()


def test_stop_ends_the_whole_group() -> None:
    process = start(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, new_session=True)
    assert process.stdout is not None
    below = int(process.stdout.readline())
    stop(process, grace=5, whole_group=True)
    process.stdout.close()
    wait_for(lambda: gone(below), seconds=2)


def test_stop_does_not_wait_for_who_has_ended() -> None:
    process = start(["true"])
    process.wait()
    assert stop(process, grace=600, whole_group=True) == 0


@pytest.mark.parametrize("wanted", [16, 1 << 40])
def test_limits_are_set_but_never_above_the_parents(wanted: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[1])"
    process = start([sys.executable, "-c", code], stdout=subprocess.PIPE, limits={resource.RLIMIT_NOFILE: wanted})
    out, _ = process.communicate()
    assert int(out) == min(wanted, hard)


def test_a_limit_can_be_soft_and_an_expendable_child_says_so() -> None:
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), open('/proc/self/oom_score_adj').read())"
    limits = {resource.RLIMIT_NOFILE: (16, 32)}
    process = start([sys.executable, "-c", code], stdout=subprocess.PIPE, limits=limits, oom_score=300)
    said, _ = process.communicate()
    assert said.split() == [b"(16,", b"32)", b"300"]
