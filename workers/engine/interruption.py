"""SIGTERM: the supervisor wants the process to end, and what is done is to be kept."""

import os
import signal
from types import FrameType
from typing import NoReturn

STOPPED = os.EX_TEMPFAIL
"""Exit code of a process that ended because it was told to: the job can go on from its last checkpoint."""


class Interruption:
    """Whether the process was told to end. It ends at once, but while it is patient it only takes note."""

    def __init__(self) -> None:
        self.requested = False
        self._patient = False

    def install(self) -> None:
        """Takes SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._take)

    def be_patient(self, patient: bool) -> None:
        """While there is more to keep than the last checkpoint holds, by who looks at `requested` soon."""
        self._patient = patient
        if self.requested and not patient:
            self.leave()

    def _take(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._patient:
            self.leave()

    def leave(self) -> NoReturn:
        """Ends the process with STOPPED; an exception could be caught on its way up, in a destructor say."""
        os._exit(STOPPED)
