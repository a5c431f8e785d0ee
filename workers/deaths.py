"""Why an engine ended without a result: by its own words if it had any, else by how it died."""

import os
import re
import signal

from workers.lease import JobFailed
from workers.relay import Relay

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_STOPPED = {os.EX_TEMPFAIL, -signal.SIGTERM}
_OUT_OF_MEMORY = re.compile(r"memory allocation of \d+ bytes failed|std::bad_alloc|can't allocate memory")
"""The last words of native code that aborts where memory runs out."""


def death_of(code: int, relay: Relay, said: str, memory: int) -> JobFailed:
    """The failure of a job whose engine ended with `code`, negative for a signal's number, and `said` on its log.

    `memory` is how many bytes it might take.
    """
    if relay.error is not None:
        line = relay.error
        return JobFailed(line.code, line.message, line.blame, retryable=line.retryable)
    if code == -signal.SIGXCPU:
        return JobFailed("TIMEOUT", "The job took more processor time than its timeout leaves room for.", "user")
    if code == -signal.SIGXFSZ:
        return no_space()
    if code == -signal.SIGABRT and _OUT_OF_MEMORY.search(said):
        bound = f"a job may take {memory >> 20} MiB here"
        return JobFailed("OUT_OF_MEMORY", f"Memory ran out, {bound}; lower batch_size or max_length.", "user")
    if code == -signal.SIGKILL:
        return JobFailed(
            "ENGINE_KILLED", "The engine was killed; it may be out of memory.", "transient", retryable=True
        )
    if code in _STOPPED:
        return JobFailed("ENGINE_STOPPED", "The engine was told to stop from outside.", "transient", retryable=True)
    if -code in _CRASHES:
        return JobFailed("ENGINE_CRASHED", f"The engine crashed ({signal.Signals(-code).name}).", retryable=True)
    return JobFailed("ENGINE_ERROR", f"The engine ended with code {code}.")


def no_space() -> JobFailed:
    """The failure of a job that found no room for its files."""
    return JobFailed("NO_SPACE", "The worker's disk or the storage is full.", "transient", retryable=True)


def no_sandbox() -> JobFailed:
    """The failure of a job that never began, as its sandbox could not be set up."""
    return JobFailed("SANDBOX_ERROR", "The job's sandbox could not be set up.", "transient", retryable=True)
