"""Calls that change files below one folder, counted, so that each in turn can be the one that fails or is the last.

They are counted where Python hands them to the system: the functions of `os`, and the writes of every file that is
opened for writing. A commit of the database counts as one call, too.
"""

import builtins
import errno
import io
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from sqlalchemy.orm import Session

Fault = Callable[["Call"], None]
T = TypeVar("T")

TAKES_ROOM = frozenset({"open", "write", "sendfile", "mkdir", "link", "fsync"})
"""Calls that a full disk refuses."""

_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate", "chmod")
_TWO_PATHS = ("rename", "replace", "link")
_DESCRIPTOR = ("write", "fsync", "ftruncate", "sendfile")
_BATCH = 8
_PROCESSES = get_context("forkserver")
_WORKS = ["tests.faults.test_publishing", "tests.faults.test_checkpoints", "tests.faults.test_disks"]
"""Modules that have what processes run, so that they are imported once and not by each."""


class Call:
    """One call that is about to be made."""

    def __init__(self, number: int, name: str, path: str) -> None:
        self.number, self.name, self.path = number, name, path

    def __repr__(self) -> str:
        return f"{self.name} {self.path} (call {self.number})"


class Calls:
    """What is counted: the calls so far, each of which is told to `fault` before it is made."""

    def __init__(self, below: Path, fault: Fault) -> None:
        self.made: list[Call] = []
        self._below, self._fault = f"{below}/", fault

    def about(self, path: str) -> bool:
        """Whether calls for a path count."""
        return path.startswith(self._below)

    def note(self, name: str, path: str) -> None:
        """Count a call; raises what the fault does."""
        call = Call(len(self.made) + 1, name, path)
        self.made.append(call)
        self._fault(call)


class _File(io.FileIO):
    """A file whose every write counts, and half of which is made before it fails."""

    calls: Calls

    def write(self, data: Any, /) -> int:
        """Count, then write."""
        whole = bytes(data)
        try:
            self.calls.note("write", _path_of(self.fileno()))
        except BaseException:
            super().write(whole[: len(whole) // 2])
            raise
        written = super().write(whole)
        assert written is not None
        return written


def _path_of(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


def _resolved(path: Any, folder: int | None) -> str:
    if isinstance(path, int):
        return _path_of(path)
    name = os.fsdecode(path)
    return name if folder is None or name.startswith("/") else f"{_path_of(folder)}/{name}"


@contextmanager
def counted(below: Path, fault: Fault = lambda call: None) -> Iterator[Calls]:
    """Count the block's calls; `fault` may raise in place of one, or never return."""
    calls = Calls(below, fault)
    with ExitStack() as stack:
        for name in _ONE_PATH:
            stack.enter_context(patch.object(os, name, _counting(calls, name, getattr(os, name), _first_path)))
        for name in _TWO_PATHS:
            stack.enter_context(patch.object(os, name, _counting(calls, name, getattr(os, name), _second_path)))
        for name in _DESCRIPTOR:
            stack.enter_context(patch.object(os, name, _counting(calls, name, getattr(os, name), _descriptor)))
        stack.enter_context(patch.object(os, "open", _counting(calls, "open", os.open, _written_to)))
        opener = _opening(calls, io.open)
        stack.enter_context(patch.object(io, "open", opener))
        stack.enter_context(patch.object(builtins, "open", opener))
        commit = Session.commit

        def committing(session: Session) -> None:
            calls.note("commit", "database")
            commit(session)

        stack.enter_context(patch.object(Session, "commit", committing))
        yield calls


def _counting(calls: Calls, name: str, real: Any, path_of: Callable[..., str]) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        path = path_of(*given, **named)
        if calls.about(path):
            calls.note(name, path)
        return real(*given, **named)

    return call


def _first_path(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str:
    return _resolved(path, dir_fd)


def _second_path(_source: Any, target: Any, *_: Any, dst_dir_fd: int | None = None, **__: Any) -> str:
    return _resolved(target, dst_dir_fd)


def _descriptor(descriptor: int, *_: Any, **__: Any) -> str:
    return _path_of(descriptor)


def _written_to(path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any) -> str:
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return _resolved(path, dir_fd) if writes else ""


def _opening(calls: Calls, real: Any) -> Any:
    def open_(file: Any, mode: str = "r", buffering: int = -1, *given: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or not calls.about(path := _resolved(file, None)):
            return real(file, mode, buffering, *given, **named)
        if not isinstance(file, int):
            calls.note("open", path)
        raw = _File(file, mode.replace("b", ""), named.pop("closefd", True), named.pop("opener", None))
        raw.calls = calls
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *(given or ("utf-8",)))

    return open_


def fails(at: Call, code: int) -> Fault:
    """That call fails. EIO is of a disk with one bad place; a full one refuses from then on all that take room."""

    def fault(call: Call) -> None:
        full = code != errno.EIO and call.number > at.number and call.name in TAKES_ROOM
        if call.number == at.number or full:
            raise OSError(code, os.strerror(code), call.path)

    return fault


def refused(calls: Iterable[Call], code: int) -> list[Call]:
    """Those of the calls that can fail in such a way."""
    return [call for call in calls if call.name != "commit" and (code == errno.EIO or call.name in TAKES_ROOM)]


def killed_at(number: int, below: Path, work: Callable[..., Callable[[], object]], *given: Any) -> bool:
    """Run what `work` makes ready in a fork, killed in place of one call; whether it came so far.

    To be called where no thread runs.
    """
    if (pid := os.fork()) == 0:
        _be_killed(number, below, work, *given)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def _be_killed(number: int, below: Path, work: Callable[..., Callable[[], object]], *given: Any) -> None:
    def fault(call: Call) -> None:
        if call.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        ready = work(*given)
        with counted(below, fault):
            ready()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def at_each(calls: Iterable[Call], point: Callable[[Call], T]) -> list[T]:
    """What `point`, which can be pickled, finds for each call. It runs in processes of its own, two at a time: those
    are small, and to fork one that has imported everything that tests need takes long."""
    with _processes() as pool:
        return list(pool.map(point, calls))


def until_through(point: Callable[[int], tuple[bool, T]]) -> list[T]:
    """The same for kills at call 1, 2 and so on, until one came to its end: `point` says whether it was killed, too."""
    found: list[tuple[bool, T]] = []
    with _processes() as pool:
        while all(killed for killed, _ in found):
            found += pool.map(point, range(len(found) + 1, len(found) + 1 + _BATCH))
    through = [killed for killed, _ in found].index(False)
    return [seen for _, seen in found[: through + 1]]


def _processes() -> ProcessPoolExecutor:
    _PROCESSES.set_forkserver_preload(_WORKS)
    return ProcessPoolExecutor(2, mp_context=_PROCESSES)
