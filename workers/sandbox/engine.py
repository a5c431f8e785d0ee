"""A job process and its pipes.

The engine dies with its supervisor. So do the processes that it started itself: a guard, one `sh` that waits for the
supervisor's end of a pipe to close, kills the engine's whole process group; what is in a sandbox goes with the sandbox.
"""

import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from service.config import Settings
from service.processes import start, stop
from workers.sandbox.confinement import environment, sandbox_of
from workers.sandbox.inmates import Inmates
from workers.sandbox.limits import EXPENDABLE, limits_of

_PIECE = 64 << 10
_LOG_TAIL = 64 << 10
_GUARD = 'read -r _; kill -KILL "-$1"'
_TO_DIE_SECONDS = 2.0
_SIGNALLED = 128
"""Added by bubblewrap to the number of the signal that ended what it ran."""


class Engine:
    """A running job process and its pipes."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        settings: Settings,
        take: Callable[[bytes], None],
        *,
        timeout: float | None = None,
    ) -> None:
        """Start `command FOLDER --report-fd N`; `take` gets the bytes of its report pipe.

        `settings` are settled: `sandbox` is not `auto`. `timeout` in seconds bounds what it takes of the processors.
        Raises `SandboxMissing`.
        """
        sandbox = sandbox_of(settings)
        self._inmates = None if sandbox is None else Inmates()
        report, its_report = os.pipe()
        log, its_log = os.pipe()
        status, its_status = os.pipe()
        words = [*command, str(folder), "--report-fd", str(its_report)]
        inside = _unconfined(words) if sandbox is None else sandbox.entered(words, folder, its_status)
        with _closed(its_report, its_log, its_status), inside as (started, passed):
            self.process = start(
                started,
                env=environment(folder, settings),
                cwd=folder,
                stdout=its_log,
                stderr=its_log,
                new_session=True,
                pass_fds=(its_report, *passed),
                limits=limits_of(settings, folder, timeout),
                oom_score=EXPENDABLE,
            )
        self._guard = _start_guard(self.process.pid)
        self._code: int | None = None
        self._log: deque[bytes] = deque()
        self._logged = 0
        self._selector = selectors.DefaultSelector()
        self._pipes: list[BinaryIO] = [os.fdopen(fd, "rb", buffering=0) for fd in (report, log, status)]
        hear = self._keep if self._inmates is None else self._inmates.feed
        for pipe, consumer in zip(self._pipes, (take, self._keep, hear), strict=True):
            self._selector.register(pipe, selectors.EVENT_READ, consumer)

    def _keep(self, data: bytes) -> None:
        self._log.append(data)
        self._logged += len(data)
        while self._logged - len(self._log[0]) > _LOG_TAIL:
            self._logged -= len(self._log.popleft())

    def log(self) -> str:
        """The end of what the engine wrote to its standard streams."""
        return b"".join(self._log).decode(errors="replace")

    @property
    def was_started(self) -> bool:
        """Once it has ended: whether it ever ran, which it did not where its sandbox could not be set up."""
        return self._inmates is None or self._inmates.were_started

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
        if self._inmates is None:
            self.process.terminate()
        else:
            self._inmates.ask_to_leave()

    def end(self, grace: float) -> int:
        """End the engine and its group, SIGTERM first; read what is left in its pipes. Returns its exit code.

        Ending it again changes nothing.
        """
        if self._code is None:
            self._code = self._stop(grace)
            while self._read(0):
                pass
            stop(self._guard, 0, gently=signal.SIGKILL)
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._selector.close()
            for pipe in self._pipes:
                pipe.close()
        return self._code

    def _stop(self, grace: float) -> int:
        if self._inmates is None:
            return stop(self.process, grace, whole_group=True)
        if grace > 0:
            self._read(0)
            self.ask_to_leave()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        self._read(0)
        known = self._inmates.kill()
        # Told apart from a signal to bubblewrap itself, which ends when what it holds has ended.
        code = stop(self.process, _TO_DIE_SECONDS if known else 0, gently=0, whole_group=True)
        return _SIGNALLED - code if code > _SIGNALLED else code


def _start_guard(pid: int) -> subprocess.Popen[bytes]:
    return start(
        ["/bin/sh", "-c", _GUARD, "guard", str(pid)],
        env={},
        cwd=Path("/"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        new_session=True,
        death_signal=0,
    )


@contextmanager
def _unconfined(command: list[str]) -> Iterator[tuple[list[str], list[int]]]:
    yield command, []


@contextmanager
def _closed(*descriptors: int) -> Iterator[None]:
    """Close our copies of what the engine writes to, whether it was started or not."""
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
