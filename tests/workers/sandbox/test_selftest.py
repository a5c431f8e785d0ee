"""Trying the sandbox, and what is made of the answer."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.config import Settings
from workers.sandbox import SandboxMissing, settle
from workers.sandbox.selftest import _run_probe, _temptations, prove

LEAKY = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
TEMPTED = {
    "reach the network",
    "read files that are not its own",
    "change files that are not its own",
    "make files where it must not",
    "read the environment of other processes",
    "change its inputs",
    "open sockets",
}


def program(folder: Path, text: str) -> Path:
    """A `bwrap` that is none."""
    made = folder / "bwrap"
    made.write_text(text)
    made.chmod(0o755)
    return folder


def test_a_process_alone_can_do_all_that_is_tried(tmp_path: Path) -> None:
    settings = Settings(sandbox="process", data_dir=tmp_path)
    with _temptations(settings.scratch) as (folder, told):
        for name in ("out", "scratch", "checkpoints"):
            (folder / name).mkdir()
        done = _run_probe(told | {"filtered": True, "gpu": False}, folder, settings)
    assert TEMPTED - set(done) <= {"make files where it must not", "change files that are not its own"}
    assert ("become root" in done) == (os.geteuid() == 0)
    assert list((settings.scratch / "jobs").iterdir()) == []


def test_a_job_in_the_sandbox_can_do_nothing_of_it(
    bubblewrap: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prove(Settings(sandbox="bubblewrap", data_dir=tmp_path))
    with caplog.at_level(logging.INFO):
        assert settle(Settings(data_dir=tmp_path)).sandbox == "bubblewrap"
    assert "Jobs run in a sandbox: bubblewrap" in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "install bubblewrap"),
        (LEAKY, "lets a job .*reach the network"),
        ("#!/bin/sh\necho No permission for namespaces >&2; exit 1", "No permission for namespaces"),
        ("#!/bin/sh\nexit 0", "no answer"),
    ],
    ids=["missing", "leaky", "refused", "silent"],
)
def test_a_sandbox_that_does_not_hold_is_none_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str | None, reason: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path if text is None else program(tmp_path, text)))
    assert settle(Settings(data_dir=tmp_path)).sandbox == "process"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith("Jobs run without a sandbox: ")
    with pytest.raises(SandboxMissing, match=reason):
        settle(Settings(sandbox="bubblewrap", data_dir=tmp_path))


def test_a_worker_that_must_have_a_sandbox_does_not_start_without(tmp_path: Path) -> None:
    told = {"PATH": str(tmp_path), "SECATEUR_SANDBOX": "bubblewrap", "SECATEUR_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "service.cli", "worker"]
    worker = subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert worker.returncode == 2
    assert "there is no sandbox: bwrap was not found; install bubblewrap" in worker.stderr
