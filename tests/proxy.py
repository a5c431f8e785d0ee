"""A TCP proxy that misbehaves as it is told: what stands between two processes in a bad network."""

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

Mood: TypeAlias = Literal["well", "slow", "drip", "hole", "refuse"]
"""slow: each piece waits; drip: a few bytes at a time; hole: nothing passes, nothing is closed; refuse: no new ones."""

SLOW_SECONDS = 0.2
DRIP_BYTES, DRIP_SECONDS = 64, 0.005
_RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER on with no time: closing sends RST."""


class Proxy:
    """Listens on a port of the loopback and passes on to a TCP address or a Unix socket."""

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self.mood: Mood = "well"
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._over = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.behave("well")
        self.cut()

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def behave(self, mood: Mood) -> None:
        """Treat all connections so from now on; what a hole held back comes out when it ends, as resent packets do."""
        with self._changed:
            self.mood = mood
            self._changed.notify_all()

    def cut(self, *, reset: bool = False) -> None:
        """Close every connection, in order or with RST."""
        with self._lock:
            pairs, self._open = self._open, set()
        for pair in pairs:
            _close(pair, reset=reset)

    def _accept(self) -> None:
        while not self._over:
            with contextlib.suppress(OSError):
                near, _ = self._listening.accept()
                if self.mood == "refuse":
                    _close((near, near), reset=True)
                else:
                    threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._obey()
        try:
            far = _connect(self._target)
        except OSError:
            _close((near, near), reset=True)
            return
        pair = (near, far)
        with self._lock:
            self._open.add(pair)
        back = threading.Thread(target=self._pump, args=(far, near, pair), daemon=True)
        back.start()
        self._pump(near, far, pair)

    def _pump(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(DRIP_BYTES if self.mood == "drip" else 65536):
                self._obey()
                sink.sendall(data)
        self._obey()  # that an end has closed is not heard through a hole
        with self._lock:
            self._open.discard(pair)
        _close(pair, reset=False)

    def _obey(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.mood != "hole")
            if self.mood in ("slow", "drip"):
                self._changed.wait(SLOW_SECONDS if self.mood == "slow" else DRIP_SECONDS)


def _connect(target: tuple[str, int] | Path) -> socket.socket:
    if isinstance(target, tuple):
        return socket.create_connection(target, timeout=None)
    far = socket.socket(socket.AF_UNIX)
    far.connect(str(target))
    return far


def _close(pair: tuple[socket.socket, socket.socket], *, reset: bool) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)  # wakes whoever reads from it
        end.close()
