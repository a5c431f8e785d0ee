"""A job's events as they happen: server-sent events read from pieces of bytes, gone on with after every break."""

import json
from collections.abc import Iterator

from service import errors
from service.client_calls import Call, Json, Unreachable

PATIENCE = 7
"""Failures in a row that are borne, over half a minute."""

_PASSING = (Unreachable, errors.Unavailable, errors.TooManyRequests)


class Listening:
    """One follower of one job: what it knows already, and what to ask for next."""

    def __init__(self, job_id: str, known: str | None, patience: int) -> None:
        self._path = f"/v1/jobs/{job_id}/events/stream"
        self._known, self._patience = known, patience
        self._line, self._data = b"", ""
        self._failures = 0
        self._retry = 1.0
        self.ended = False

    @property
    def pause(self) -> float:
        """Seconds before asking again: as the service wishes, longer with every failure."""
        return 0.25 * 2.0 ** (self._failures - 1) if self._failures else self._retry

    def call(self) -> Call:
        """Everything from here on. What a broken connection left half-sent comes again."""
        self._line, self._data = b"", ""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._known} if self._known else {})
        return Call("GET", self._path, headers=headers)

    def begin(self, status: int) -> None:
        """The service has answered: 204 when the job has ended and all is known."""
        self.ended = status == 204

    def take(self, piece: bytes) -> Iterator[Json]:
        """The events that a piece of the stream completes."""
        self._failures = 0
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            event = self._read(line.removesuffix(b"\r").decode())
            if event is not None:
                self._known = event["id"]
                yield event

    def _read(self, line: str) -> Json | None:
        name, _, value = line.partition(":")
        if name == "data":
            self._data += value.removeprefix(" ")
        elif name == "retry" and value.strip().isdecimal():
            self._retry = int(value) / 1000
        elif line == "" and self._data:
            event: Json = json.loads(self._data)
            self._data = ""
            return event
        return None

    def fail(self, error: Exception) -> None:
        """Note a failure; raises it when it will not pass, or did not in a long while."""
        self._failures += 1
        if not isinstance(error, _PASSING) or self._failures > self._patience:
            raise error


def stream_job_events(job_id: str, *, after: str | None = None, patience: int = PATIENCE) -> Listening:
    """What happens in a job, as it happens, until it has ended; first what has happened since the event `after`.

    Iterate over it. A lost connection, or a service that starts anew, costs no event and doubles none; one that is away
    is asked again `patience` times, each after twice the pause (7: about half a minute).
    """
    return Listening(job_id, after, patience)
