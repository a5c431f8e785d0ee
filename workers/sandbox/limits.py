"""What a job may use of the machine: memory, processor time, processes, files and their size."""

import math
import os
import resource
import shutil
from pathlib import Path

from service.config import Settings
from service.processes import Limits

EXPENDABLE = 500
"""Added to a job's badness where memory runs out, so that the kernel ends it and not the worker or a database."""

_OPEN_FILES = 4096
_PROCESSES = 4096
_LARGEST_RESERVE, _RESERVED_PART = 2 << 30, 8
_CPU_SECONDS_TO_DIE = 5
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def limits_of(settings: Settings, folder: Path, timeout: float | None) -> Limits:
    """`resource.RLIMIT_*` of an engine that works in `folder` for at most `timeout` seconds."""
    limits: dict[int, int | tuple[int, int]] = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        # Counted over all that this user runs. The kernel never refuses root.
        resource.RLIMIT_NPROC: _running() + _PROCESSES,
        resource.RLIMIT_FSIZE: shutil.disk_usage(folder).free,
        # Of data, not of addresses: CUDA reserves far more of these than there is memory.
        resource.RLIMIT_DATA: memory_of(settings),
    }
    if timeout is not None:
        # The supervisor watches the clock; this ends what it cannot see.
        seconds = math.ceil(timeout * len(os.sched_getaffinity(0)))
        limits[resource.RLIMIT_CPU] = (seconds, seconds + _CPU_SECONDS_TO_DIE)
    return limits


def memory_of(settings: Settings) -> int:
    """Bytes that one job process may take."""
    return settings.job_memory_bytes or memory_for_a_job()


def memory_for_a_job() -> int:
    """Bytes of this machine or container, less a reserve for what else it does."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in map(Path, _CGROUP_LIMITS):
        bound = file.read_text().strip() if file.exists() else "max"
        memory = memory if bound == "max" else min(memory, int(bound))
    return memory - min(_LARGEST_RESERVE, memory // _RESERVED_PART)


def is_full(folder: Path, settings: Settings) -> bool:
    """Whether a job has to end for want of room: half of the reserve below which nothing is taken in is gone."""
    return shutil.disk_usage(folder).free < settings.disk_reserve_bytes // 2


def _running() -> int:
    """Threads of this user's processes, which are what RLIMIT_NPROC counts."""
    mine, total = os.geteuid(), 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == mine:
                total += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # it has ended
            continue
    return total
