"""Engines of a line of Python, in each level of confinement that this machine has."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.config import Settings
from workers.sandbox import Engine

StartEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def bubblewrap() -> str:
    """Skips the test where bubblewrap is missing, or this machine lets nobody have namespaces."""
    if shutil.which("bwrap") is None:
        pytest.skip("install bubblewrap")
    tried = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    if subprocess.run(tried, check=False).returncode != 0:
        pytest.skip("bubblewrap does not work here; its message tells why")
    return "bubblewrap"


@pytest.fixture(params=["process", "bubblewrap"])
def level(request: pytest.FixtureRequest) -> str:
    """Each level."""
    if request.param == "bubblewrap":
        request.getfixturevalue("bubblewrap")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work folder with one input."""
    work = tmp_path / "jobs" / "work"
    (work / "in").mkdir(parents=True)
    (work / "in" / "input").write_text("input")
    return work


@pytest.fixture
def start_engine(folder: Path, tmp_path: Path) -> StartEngine:
    """Start one: its arguments are the folder, `--report-fd` and the descriptor, and it has imported what it needs."""

    def begin(code: str, level: str, taken: list[bytes] | None = None, **told: int) -> Engine:
        settings = Settings(sandbox=level, data_dir=tmp_path, **told)  # type: ignore[arg-type] # one of the levels
        words = [sys.executable, "-c", f"import os, resource, signal, socket, sys, time\n{code}"]
        return Engine(words, folder, settings, (taken if taken is not None else []).append, timeout=60)

    return begin


def finish(running: Engine) -> int:
    """Let it run to its end."""
    while running.pump(1):
        pass
    return running.end(0)
