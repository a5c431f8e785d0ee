"""A TCP proxy that misbehaves as it is told: what stands between two processes in a bad network."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

Mood: TypeAlias = Literal["well", "slow", "drip", "hole", "refuse"]
"""slow: each piece waits; drip: a few bytes at a time; hole: nothing passes, nothing is closed; refuse: no new ones."""

_Pair: TypeAlias = tuple[socket.socket, socket.socket]

SLOW_SECONDS = 0.05
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
        self._open: set[_Pair] = set()
        self._stranded: set[_Pair] = set()
        self._changed = threading.Condition()
        self._over = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._stranded.clear()
        self.behave("well")
        self.cut()

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._changed:
            return len(self._open)

    def behave(self, mood: Mood) -> None:
        """Treat all connections so from now on; what a hole held back comes out when it ends, as resent packets do."""
        with self._changed:
            self.mood = mood
            self._changed.notify_all()

    def strand(self) -> None:
        """Let nothing pass on any connection that is open now, for good; new ones are as they should be."""
        with self._changed:
            self._stranded |= self._open
            self.mood = "well"
            self._changed.notify_all()

    def cut(self, *, reset: bool = False) -> None:
        """Close every connection, in order or with RST."""
        with self._changed:
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
        with self._changed:
            self._open.add(pair)
        back = threading.Thread(target=self._pump, args=(far, near, pair), daemon=True)
        back.start()
        self._pump(near, far, pair)

    def _pump(self, source: socket.socket, sink: socket.socket, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(DRIP_BYTES if self.mood == "drip" else 65536):
                self._obey(pair)
                sink.sendall(data)
        self._obey(pair)  # that an end has closed is not heard through a hole
        with self._changed:
            self._open.discard(pair)
        _close(pair, reset=False)

    def _obey(self, pair: _Pair | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.mood != "hole" and pair not in self._stranded)
            pause = {"slow": SLOW_SECONDS, "drip": DRIP_SECONDS}.get(self.mood)
        if pause is not None:
            time.sleep(pause)


def _connect(target: tuple[str, int] | Path) -> socket.socket:
    if isinstance(target, tuple):
        return socket.create_connection(target, timeout=None)
    far = socket.socket(socket.AF_UNIX)
    far.connect(str(target))
    return far


def _close(pair: _Pair, *, reset: bool) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)  # wakes whoever reads from it
        end.close()
