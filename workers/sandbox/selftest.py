"""Whether the sandbox holds: tried when a worker starts, by a program that does what jobs must not be able to do."""

import json
import logging
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service import folders
from service.config import Settings
from service.processes import start, stop
from workers.sandbox.bubblewrap import SandboxMissing, asks_for_gpu, find
from workers.sandbox.engine import Engine

log = logging.getLogger(__name__)

_PROBE = Path(__file__).with_name("probe.py")
_SECONDS = 120.0
_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def settle(settings: Settings) -> Settings:
    """`settings` with the sandbox that jobs will have: `bubblewrap` where it holds, else `process`, and a warning.

    Raises `SandboxMissing` where the settings ask for `bubblewrap` and it cannot be had.
    """
    if settings.sandbox == "process":
        log.warning("Jobs run without a sandbox, as SECATEUR_SANDBOX says")
        return settings
    confined = settings.model_copy(update={"sandbox": "bubblewrap"})
    try:
        prove(confined)
    except SandboxMissing as missing:
        if settings.sandbox == "bubblewrap":
            raise
        log.warning("Jobs run without a sandbox: %s", missing)
        return settings.model_copy(update={"sandbox": "process"})
    log.info("Jobs run in a sandbox: %s", find(confined).level)
    return confined


def prove(settings: Settings) -> None:
    """Raises `SandboxMissing` unless a job can work in the sandbox of these settings and do nothing beyond."""
    filtered = find(settings).system_calls is not None
    with _temptations(settings.scratch) as (folder, told):
        done = _run_probe(told | {"filtered": filtered, "gpu": _has_gpu(settings)}, folder, settings)
    if done:
        raise SandboxMissing(f"it was tried, and lets a job {', '.join(done)}")


def _run_probe(told: dict[str, Any], folder: Path, settings: Settings) -> list[str]:
    answer: list[bytes] = []
    probe = Engine([sys.executable, "-I", str(_PROBE), json.dumps(told)], folder, settings, answer.append)
    deadline = time.monotonic() + _SECONDS
    while probe.pump(0.2) and time.monotonic() < deadline:
        pass
    code = probe.end(0)
    if code != 0:
        said = probe.log().strip().splitlines() or ["it said nothing"]
        raise SandboxMissing(f"it was tried, and failed with code {code}: {said[-1]}")
    try:
        done: list[str] = json.loads(b"".join(answer))
    except ValueError:
        raise SandboxMissing("it was tried, and gave no answer") from None
    return done


@contextmanager
def _temptations(scratch: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A work folder, and all that a job in it must not get at: a file, a listener, another process's environment."""
    jobs = scratch / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    secret = secrets.token_hex()
    with folders.owned(Path(tempfile.mkdtemp(prefix="sandbox-", dir=jobs))) as parent:
        folder, canary = parent / "job", parent / "canary"
        (folder / "in").mkdir(parents=True)
        for path in (canary, folder / "in" / "input"):
            path.write_text(secret)
        with socket.create_server(("127.0.0.1", 0)) as listener, _neighbour(secret):
            yield folder, {"canary": str(canary), "secret": secret, "port": listener.getsockname()[1]}


@contextmanager
def _neighbour(secret: str) -> Iterator[None]:
    """A process of the same user that waits, with a secret in its environment."""
    waiting = start(["/bin/cat"], env={"SECRET": secret}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        stop(waiting, 0, gently=signal.SIGKILL)
        assert waiting.stdin is not None
        waiting.stdin.close()


def _has_gpu(settings: Settings) -> bool:
    """Whether PyTorch finds a GPU outside of the sandbox; asked in a process of its own, as this one is free of it."""
    if not asks_for_gpu(settings) or shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run([sys.executable, "-P", "-c", _GPU], capture_output=True, check=False).returncode == 0
