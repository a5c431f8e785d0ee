"""A network that breaks: a TCP proxy that cuts connections at chosen points, and what is sent through it."""

import contextlib
import json
import os
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.uploads import bert_files, with_header

_PIECE = 64 << 10
_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: closing resets the connection, as a cable that is pulled does in the end."""


class CuttingProxy:
    """Passes bytes to a port of this machine; resets the connection whose byte is the next one to be cut at."""

    def __init__(self, port: int, cuts: int, size: int, seed: int = 0, *, downloads: bool = False) -> None:
        """`cuts` connections break, at random points among the first `size` bytes that go to the server.

        With `downloads` those that come from it count instead.
        """
        chance = random.Random(seed)
        self._cuts = sorted(chance.randrange(size) for _ in range(cuts))
        self._port = port
        self._downloads = downloads
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.sent = 0
        """Bytes that went to the server, or for downloads came from it, heads included."""
        self.made = 0
        """Cuts so far."""
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for end in list(self._open):
            self._close(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # it was killed, and is not back yet
                    self._close(client)
                    continue
                self._open |= {client, server}
                for source, target in ((client, server), (server, client)):
                    counts = (source is server) == self._downloads
                    passes = self._may_pass if counts else lambda size: True
                    threading.Thread(target=self._pump, args=(source, target, passes), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, passes: Callable[[int], bool]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if not passes(len(piece)):
                    break
                target.sendall(piece)
        for end in (source, target):
            self._close(end)

    def _may_pass(self, size: int) -> bool:
        with self._lock:
            self.sent += size
            if self.made < len(self._cuts) and self.sent > self._cuts[self.made]:
                self.made += 1
                return False
        return True

    def _close(self, end: socket.socket) -> None:
        self._open.discard(end)
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def big_model(folder: Path, megabytes: int, shards: int) -> Path:
    """A model that the door takes, whose weights are mostly random bytes, in shards of equal size."""
    folder.mkdir()
    for name, content in bert_files().items():
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").rename(folder / "model-00000.safetensors")
    for shard in range(1, shards + 1):
        size = megabytes * 10**6 // shards
        tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        with (folder / f"model-{shard:05}.safetensors").open("wb") as file:
            file.write(with_header(json.dumps({f"padding.{shard}": tensor}).encode()))
            for start in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size - start)))
    return folder


def memory(pid: int) -> tuple[int, int]:
    """Bytes that a process holds in memory now, and the most that it ever did."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most
