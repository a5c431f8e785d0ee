"""Asks a server at a fixed rate, whatever it answers: a process of its own, run by `measure`.

A latency counts from the moment when the request was due, so that a slow answer also costs those that waited behind it
(no coordinated omission). Plain asyncio: a client library would take as much of the cores as the service under test.
"""

import asyncio
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS = 64
START_SECONDS = 0.2


@dataclass(frozen=True)
class Request:
    """What is asked once."""

    method: str
    path: str
    headers: dict[str, str]
    body: str = ""

    def text(self, host: str) -> str:
        """As it goes over the wire; ASCII alone, so that characters are bytes."""
        headers = {"Host": host, **self.headers}
        if self.body:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(self.body))}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", self.body])


@dataclass(frozen=True)
class Measured:
    """What became of the requests of one run, each as (seconds, status, id in the answer)."""

    rate: float
    seconds: float
    answers: list[tuple[float, int, str | None]]

    @property
    def statuses(self) -> Counter[int]:
        """How often each status came; 0 is a broken connection."""
        return Counter(status for _, status, _ in self.answers)

    def ids(self, status: int) -> list[str]:
        """Ids in the answers with that status."""
        return [id_ for _, given, id_ in self.answers if given == status and id_ is not None]

    def percentile(self, share: float) -> float:
        """Milliseconds that this share of the answers took at most."""
        return percentile([seconds for seconds, _, _ in self.answers], share)

    def __str__(self) -> str:
        spread = "  ".join(f"p{100 * share:.0f} {self.percentile(share):.1f}" for share in (0.5, 0.95, 0.99))
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        reached = len(self.answers) / self.seconds
        return f"{spread}  max {self.percentile(1):.1f} ms  n {len(self.answers)} at {reached:.0f}/s  ({statuses})"


def percentile(seconds: Sequence[float], share: float) -> float:
    """Milliseconds that this share of the values reaches at most, by the nearest rank."""
    return 1000 * sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]


class Run:
    """A run under way in the sender's process."""

    def __init__(self, url: str, rate: float, requests: Sequence[Request]) -> None:
        address = urlsplit(url)
        texts = [request.text(address.netloc) for request in requests]
        plan = {"host": address.hostname, "port": address.port, "rate": rate, "requests": texts}
        command = [sys.executable, "-m", "tests.benchmarks.open_loop"]
        self.rate = rate
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan).encode())
        self._process.stdin.close()

    def measured(self) -> Measured:
        """Wait for its end."""
        assert self._process.stdout is not None
        told = self._process.stdout.read()
        assert self._process.wait() == 0
        seconds, answers = json.loads(told)
        return Measured(self.rate, seconds, [tuple(answer) for answer in answers])


def measure(url: str, rate: float, requests: Sequence[Request]) -> Measured:
    """Send the requests at that rate (per second) and wait for all answers."""
    return Run(url, rate, requests).measured()


# What follows runs in the sender's process


async def send(plan: dict[str, Any]) -> tuple[float, list[tuple[float, int, str | None]]]:
    """Seconds from the first request to the last answer, and the answers."""
    connections: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for _ in range(CONNECTIONS):
        connections.put_nowait(Connection(plan["host"], plan["port"]))
    loop, tasks = asyncio.get_running_loop(), []
    begun = loop.time() + START_SECONDS

    async def ask(due: float, text: str) -> tuple[float, int, str | None]:
        connection = await connections.get()
        status, body = await connection.ask(text.encode())
        connections.put_nowait(connection)
        return loop.time() - due, status, id_of(body)

    for index, text in enumerate(plan["requests"]):
        due = begun + index / plan["rate"]
        await asyncio.sleep(due - loop.time())
        tasks.append(loop.create_task(ask(due, text)))
    answers = await asyncio.gather(*tasks)
    return loop.time() - begun, answers


def id_of(body: bytes) -> str | None:
    """The id at the beginning of an answer; reading all of it would cost more than sending the next request."""
    return body[7:].partition(b'"')[0].decode() if body.startswith(b'{"id":"') else None


class Connection:
    """One connection that is kept, and opened again when it breaks."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; status 0 when the connection broke, a new one where it had been idle."""
        for reused in (True, False) if self._open else (False,):
            try:
                return await self._exchange(request)
            except (OSError, asyncio.IncompleteReadError):
                self._open = None
                if not reused:
                    break
        return 0, b""

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._open is None:
            self._open = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._open
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


if __name__ == "__main__":
    json.dump(asyncio.run(send(json.load(sys.stdin))), sys.stdout)
