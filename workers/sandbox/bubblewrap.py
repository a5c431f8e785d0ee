"""The command line of bubblewrap: a job sees Python, the project and its own folder, and no more of the machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from service.config import Settings
from workers.sandbox.system_calls import system_call_filter

WRITABLE = ("out", "scratch", "checkpoints")
"""Of the work folder. Each is mounted by itself, so that a job cannot put a link in its place."""

_READ_ONLY = ("in", "order.json")
_USR = Path("/usr")
_IN_ROOT = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_LOADER_CACHE = "/etc/ld.so.cache"
_IN_MEMORY = ("/dev/shm", "/tmp")  # noqa: S108 # the sandbox's own
_IN_MEMORY_BYTES = 64 << 20
_NOBODY = "65534"
_PATHS_OF_PYTHON = """
import importlib.util, json, sys
found = [sys.prefix, sys.exec_prefix, sys.base_prefix, *sys.path]
for name in ("service", "workers"):
    found += importlib.util.find_spec(name).submodule_search_locations
print(json.dumps(found))
"""


class SandboxMissing(Exception):
    """This machine has no sandbox for jobs; the text says why."""


@dataclass(frozen=True)
class Bubblewrap:
    """A sandbox that can be entered any number of times."""

    program: str
    shown: tuple[Path, ...]
    """Read-only, beside /usr."""
    gpus: tuple[Path, ...]
    """Devices of the driver that jobs may talk to: all of them or none."""
    system_calls: bytes | None
    """The filter's instructions."""

    @property
    def level(self) -> str:
        """What `/readyz` tells of it."""
        return "bubblewrap" + "+seccomp" * (self.system_calls is not None) + "+gpu" * bool(self.gpus)

    @contextmanager
    def entered(self, command: Sequence[str], folder: Path, status: int) -> Iterator[tuple[list[str], list[int]]]:
        """`command` inside, with `folder` as its own, and the descriptors to pass on while it is started.

        `status` is a descriptor that bubblewrap tells of the processes inside, in lines of JSON.
        """
        for name in WRITABLE:
            (folder / name).mkdir(exist_ok=True)
        words = [self.program, *self._namespaces(), "--json-status-fd", str(status), *self._mounts(folder)]
        if self.system_calls is None:
            yield [*words, "--", *command], [status]
            return
        reader, writer = os.pipe()
        try:
            os.write(writer, self.system_calls)
            os.close(writer)
            yield [*words, "--seccomp", str(reader), "--", *command], [status, reader]
        finally:
            os.close(reader)

    def _namespaces(self) -> list[str]:
        # A user namespace also where root starts it and could do without: inside, nobody has any capability.
        words = ["--unshare-user", "--unshare-all", "--uid", _NOBODY, "--gid", _NOBODY, "--cap-drop", "ALL"]
        return [*words, "--die-with-parent", "--new-session"]

    def _mounts(self, folder: Path) -> list[str]:
        words = [*_system(), "--proc", "/proc", "--dev", "/dev"]
        for place in _IN_MEMORY:
            words += ["--size", str(_IN_MEMORY_BYTES), "--tmpfs", place]
        words += _each("--dev-bind", self.gpus) + _each("--ro-bind", self.shown)
        words += _each("--bind", (folder, *(folder / name for name in WRITABLE)))
        words += _each("--ro-bind", (path for name in _READ_ONLY if (path := folder / name).exists()))
        # Files of /proc that belong to root can be written by a worker that is root, whatever its namespaces.
        for place in ("/proc", "/dev", "/"):
            words += ["--remount-ro", place]
        return [*words, "--chdir", str(folder)]


def _system() -> list[str]:
    words = _each("--ro-bind", (_USR,))
    for path in (Path("/", name) for name in _IN_ROOT):
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += _each("--ro-bind", (path,))
    return [*words, "--ro-bind-try", _LOADER_CACHE, _LOADER_CACHE]


def _each(option: str, paths: Iterable[Path]) -> list[str]:
    return [word for path in paths for word in (option, str(path), str(path))]


def find(settings: Settings) -> Bubblewrap:
    """Bubblewrap as this machine has it, not tried yet. Raises `SandboxMissing`."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxMissing("bwrap was not found; install bubblewrap")
    shown = paths_of_python()
    secret = {settings.data_dir.absolute(), settings.scratch, settings.data_dir.resolve(), settings.scratch.resolve()}
    for path in (_USR, *shown):
        if any(kept.is_relative_to(path) for kept in secret):
            raise SandboxMissing(f"Python needs {path}, and the service's data lies in it; move one of them")
    gpus = sorted(Path("/dev").glob("nvidia*")) if asks_for_gpu(settings) else []
    return Bubblewrap(program, shown, tuple(gpus), system_call_filter())


@cache
def paths_of_python() -> tuple[Path, ...]:
    """Folders outside of /usr that an interpreter like the engine's imports from, none of them inside another."""
    # Asked of a fresh one: this process may import from folders that are the worker's own business.
    command = [sys.executable, "-P", "-c", _PATHS_OF_PYTHON]
    answer = subprocess.run(command, env={}, cwd="/", capture_output=True, check=True)
    named = [Path(path) for path in json.loads(answer.stdout)]
    found = {path for name in named for path in (name, name.resolve()) if path.is_absolute() and path.exists()}
    apart: list[Path] = []
    for path in sorted(found):
        if not any(path.is_relative_to(shown) for shown in (_USR, *apart)):
            apart.append(path)
    return tuple(apart)


def asks_for_gpu(settings: Settings) -> bool:
    """Whether jobs are to have GPUs: those that the worker was given, or whatever there is where nothing was said."""
    told = settings.cuda_visible_devices
    return shutil.which("nvidia-smi") is not None if told is None else told not in ("", "-1")
