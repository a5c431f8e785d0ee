"""The processes of one sandbox, seen from outside of it."""

import json
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

_GONE_MILLISECONDS = 5000


class Inmates:
    """Known by the sandbox's first process: every other one dies with it."""

    def __init__(self) -> None:
        self.were_started = False
        """Whether the sandbox was complete, so that what ended in it was the engine."""
        self._first: tuple[int, int] | None = None  # pid and its descriptor, for pids are used again
        self._line = b""

    def feed(self, data: bytes) -> None:
        """Take what bubblewrap tells of them."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            self.were_started = self.were_started or "exit-code" in told
            if "child-pid" in told:
                with suppress(ProcessLookupError):  # it was short-lived
                    self._first = told["child-pid"], os.pidfd_open(told["child-pid"])

    def ask_to_leave(self) -> None:
        """SIGTERM to the engine, the eldest child of the first process."""
        if self._first is None:
            return
        pid, _ = self._first
        with suppress(FileNotFoundError, ProcessLookupError):  # they are leaving already
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                os.kill(int(children[0]), signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL to all of them; they are gone when it returns. False when none is known."""
        if self._first is None:
            return False
        _, descriptor = self._first
        self._first = None
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        gone = select.poll()
        gone.register(descriptor, select.POLLIN)
        gone.poll(_GONE_MILLISECONDS)
        os.close(descriptor)
        return True
