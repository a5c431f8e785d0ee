"""How a job process is confined: its own session, a clean environment, resource limits, and no life of its own.

The engine dies with its supervisor. So do the processes that it started itself: a guard, one `sh` that waits for the
supervisor's end of a pipe to close, kills the engine's whole process group.
"""

import os
import resource
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from service.config import Settings
from service.processes import start, stop

LEVEL = "process"
"""What `/readyz` tells of this sandbox: separate processes with limits, not namespaces."""

_LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 4096}
_PIECE = 64 << 10
_LOG_TAIL = 64 << 10
_GUARD = 'read -r _; kill -KILL "-$1"'


def environment(folder: Path, settings: Settings) -> dict[str, str]:
    """All that an engine's environment holds: no secret of the worker's."""
    scratch = str(folder / "scratch")
    clean = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait by spinning make training several times slower where others use the cores too.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
    }
    if settings.cuda_visible_devices is not None:
        clean["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    return clean


class Engine:
    """A running job process and its pipes."""

    def __init__(self, command: Sequence[str], folder: Path, settings: Settings, take: Callable[[bytes], None]) -> None:
        """Start `command FOLDER --report-fd N`; `take` gets the bytes of its report pipe."""
        report, its_report = os.pipe()
        log, its_log = os.pipe()
        try:
            self.process = start(
                [*command, str(folder), "--report-fd", str(its_report)],
                env=environment(folder, settings),
                cwd=folder,
                stdout=its_log,
                stderr=its_log,
                new_session=True,
                pass_fds=(its_report,),
                limits=_LIMITS,
            )
        finally:
            os.close(its_report)
            os.close(its_log)
        self._guard = start(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.process.pid)],
            env={},
            cwd=Path("/"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            new_session=True,
            death_signal=0,
        )
        self._code: int | None = None
        self._log: deque[bytes] = deque()
        self._logged = 0
        self._selector = selectors.DefaultSelector()
        self._pipes: list[BinaryIO] = [os.fdopen(report, "rb", buffering=0), os.fdopen(log, "rb", buffering=0)]
        for pipe, consumer in zip(self._pipes, (take, self._keep), strict=True):
            self._selector.register(pipe, selectors.EVENT_READ, consumer)

    def _keep(self, data: bytes) -> None:
        self._log.append(data)
        self._logged += len(data)
        while self._logged - len(self._log[0]) > _LOG_TAIL:
            self._logged -= len(self._log.popleft())

    def log(self) -> str:
        """The end of what the engine wrote to its standard streams."""
        return b"".join(self._log).decode(errors="replace")

    def pump(self, seconds: float) -> bool:
        """Pass on what was reported, waiting at most `seconds` for it. False once the engine has ended."""
        self._read(seconds)
        return self.process.poll() is None

    def _read(self, seconds: float) -> bool:
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if data := os.read(key.fd, _PIECE):
                key.data(data)
            else:
                self._selector.unregister(key.fileobj)
        return bool(ready) and bool(self._selector.get_map())

    def ask_to_leave(self) -> None:
        """Tell the engine, and nothing below it, to save what it has and to end (SIGTERM)."""
        self.process.terminate()

    def end(self, grace: float) -> int:
        """End the engine and its group, SIGTERM first; read what is left in its pipes. Returns its exit code.

        Ending it again changes nothing.
        """
        if self._code is None:
            self._code = stop(self.process, grace, whole_group=True)
            while self._read(0):
                pass
            stop(self._guard, 0, gently=signal.SIGKILL)
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._selector.close()
            for pipe in self._pipes:
                pipe.close()
        return self._code
