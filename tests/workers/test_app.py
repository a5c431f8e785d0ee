"""The Celery application of the workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.broker import ENTRY
from service.config import Settings, get_settings
from workers import app, supervisor

HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "sklearn", "numpy"}


def test_importing_it_loads_no_machine_learning() -> None:
    code = "import sys, workers.app; print(*sorted(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "celery" in loaded and not HEAVY & set(loaded)


def test_there_is_one_entry_and_it_takes_the_jobs_id() -> None:
    assert [name for name in app.app.tasks if not name.startswith("celery.")] == [ENTRY]
    assert app.app.conf.worker_pool_start_method == "spawn"


def test_the_drain_flag_is_raised_by_a_shutdown_and_taken_down_at_the_next_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "get_settings", lambda: settings)
    settings.scratch.mkdir(parents=True)
    flag = supervisor.drain_file(settings.scratch, os.getpid())
    app._shutting_down()
    assert flag.exists()
    app._ready()
    assert not flag.exists()
    app._shutdown()
    app._presence.cache_clear()


def test_the_sandbox_is_decided_once_for_the_worker_and_all_that_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECATEUR_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SECATEUR_SANDBOX", "auto")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(app, "_set_up_logging", lambda: None)
    get_settings.cache_clear()
    app._confine()
    assert get_settings().sandbox == "process" and os.environ["SECATEUR_SANDBOX"] == "process"
    get_settings.cache_clear()
