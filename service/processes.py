"""Child processes that cannot outlive the process that started them."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
# Loaded here: between fork and exec only the call itself is safe.

Stream = int | IO[bytes]
Limits = Mapping[int, int | tuple[int, int]]
"""`resource.RLIMIT_*` to its bound, or to its soft and its hard one."""


def die_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process `death_signal` when the thread that started it ends (Linux only).

    `parent` is the pid expected as parent: a process whose parent has already gone ends at once.
    """
    if _libc is None:
        return
    if _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def start(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream | None = None,
    stderr: Stream | None = None,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
    death_signal: int = signal.SIGKILL,
    limits: Limits | None = None,
    oom_score: int = 0,
    user: tuple[int, int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that dies with the calling thread.

    `oom_score` makes it likelier to be ended where memory runs out (Linux, 0 to 1000); `user` is a (uid, gid) to
    change to.
    """
    uid, gid = user or (None, None)
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=new_session,
        pass_fds=pass_fds,
        user=uid,
        group=gid,
        extra_groups=[] if user else None,
        # Safe among threads: between fork and exec it makes system calls and takes no lock.
        preexec_fn=_before_exec(os.getpid(), death_signal, limits or {}, oom_score),  # noqa: PLW1509
    )


def _before_exec(parent: int, death_signal: int, limits: Limits, oom_score: int) -> Callable[[], None]:
    def prepare() -> None:
        die_with_parent(parent, death_signal)
        if oom_score:
            _raise_oom_score(oom_score)
        for kind, wanted in limits.items():
            bounds = wanted if isinstance(wanted, tuple) else (wanted, wanted)
            most = resource.getrlimit(kind)[1]
            soft, hard = (bound if most == resource.RLIM_INFINITY else min(bound, most) for bound in bounds)
            resource.setrlimit(kind, (soft, hard))

    return prepare


def _raise_oom_score(score: int) -> None:
    with contextlib.suppress(OSError):  # another system, or one that lets nobody change it
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, str(score).encode())
        os.close(descriptor)


def stop(
    process: subprocess.Popen[bytes], grace: float, *, gently: int = signal.SIGTERM, whole_group: bool = False
) -> int:
    """End a child: `gently` first, SIGKILL after `grace` seconds. Returns its exit code.

    `whole_group` signals every process of the group that the child leads, also once the child itself has gone.
    """
    _send(process, gently, whole_group)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    if whole_group or process.poll() is None:
        _send(process, signal.SIGKILL, whole_group)
    return process.wait()


def _send(process: subprocess.Popen[bytes], number: int, whole_group: bool) -> None:
    if whole_group:
        with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
            os.killpg(process.pid, number)
    else:
        process.send_signal(number)
