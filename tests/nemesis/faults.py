"""The nemesis: breaks what the plan says, and puts it right again after a while, so that faults overlap."""

import heapq
import subprocess
import time
from collections.abc import Callable
from itertools import count

from tests.nemesis.cluster import Cluster
from tests.nemesis.history import History
from tests.nemesis.plan import Fault

MOST_SECONDS = {
    "kill worker": 3.0,
    "kill api": 2.0,
    "kill broker": 5.0,
    "crash database": 4.0,
}
"""How long each stays down at most."""

Undo = tuple[float, Callable[[], None]]
"""After so many seconds, do this."""


class Nemesis:
    """Runs in the thread that starts processes."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        self._cluster, self._history = cluster, history
        self._pending: list[tuple[float, int, str, Callable[[], None]]] = []
        self._order = count()
        self.done: dict[str, int] = {}

    def wait(self, seconds: float) -> None:
        """Let time pass, and undo meanwhile what is due."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self._undo(now)
            self._restart_ended()
            time.sleep(min(0.05, until - now))

    def _undo(self, now: float) -> None:
        while self._pending and self._pending[0][0] <= now:
            _, _, kind, undo = heapq.heappop(self._pending)
            undo()
            self._history.fault(f"{kind}: over")

    def _restart_ended(self) -> None:
        """What ended though nobody had killed it is started again, as whatever keeps processes does."""
        for name, code in self._cluster.ended().items():
            if not any(kind == f"kill {name.split()[0]}" for _, _, kind, _ in self._pending):
                self._history.fault("started again, as it had ended", process=name, code=code)
                self._cluster.start_again(name)

    def strike(self, fault: Fault) -> None:
        """Break something; nothing happens when it is down already."""
        happens: Callable[[Fault], Undo | bool] = getattr(self, f"_{fault.kind.replace(' ', '_')}")
        self._history.fault(fault.kind, target=fault.target)
        undo = happens(fault)
        if undo is False:
            self._history.fault(f"{fault.kind}: there was nothing to break")
            return
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        if not isinstance(undo, bool):
            heapq.heappush(self._pending, (time.monotonic() + undo[0], next(self._order), fault.kind, undo[1]))

    def heal(self) -> None:
        """Undo everything, and wait until the service is whole."""
        self._undo(float("inf"))
        self._cluster.start()
        self._history.fault("healed")

    def _down(self, fault: Fault) -> float:
        return MOST_SECONDS[fault.kind] * fault.down

    def _kill_worker(self, fault: Fault) -> Undo | bool:
        number = fault.target
        return self._cluster.kill_worker(number) and (self._down(fault), lambda: self._start_worker(number))

    def _start_worker(self, number: int) -> None:
        if self._cluster.worker(number) is None:
            self._cluster.start_worker(number)

    def _kill_engine(self, fault: Fault) -> Undo | bool:
        engine = self._cluster.engine(fault.target) or self._cluster.engine(1 - fault.target)
        if engine is None:
            return False
        engine.kill()
        return True

    def _freeze_worker(self, fault: Fault) -> Undo | bool:
        """Half as long again as the lease, or up to twice as long."""
        number, lease = fault.target, self._cluster.settings.lease_seconds
        if number in self._cluster.frozen or not self._cluster.freeze(number):
            return False
        return lease * (1.5 + fault.down / 2), lambda: self._cluster.thaw(number)

    def _stop_worker(self, fault: Fault) -> Undo | bool:
        number = fault.target
        process = self._cluster.worker(number)
        if process is None or number in self._cluster.frozen:
            return False
        process.terminate()
        code = self._cluster.await_end(process)
        self._history.fault("stop worker: it left", code=code)
        self._start_worker(number)
        return True

    def _kill_api(self, fault: Fault) -> Undo | bool:
        if self._cluster.api is None:
            return False
        self._cluster.api.kill()
        return self._down(fault), self._start_api

    def _start_api(self) -> None:
        if self._cluster.api is None:
            self._cluster.start_api()

    def _stop_api(self, fault: Fault) -> Undo | bool:
        if (process := self._cluster.api) is None:
            return False
        process.terminate()
        code = self._cluster.await_end(process)
        self._history.fault("stop api: it left", code=code)
        self._start_api()
        return True

    def _running_broker(self) -> subprocess.Popen[bytes] | None:
        return self._cluster.broker.process if self._cluster.broker_is_up else None

    def _kill_broker(self, fault: Fault) -> Undo | bool:
        if (process := self._running_broker()) is None:
            return False
        process.kill()
        process.wait()
        return self._down(fault), self._start_broker

    def _start_broker(self) -> None:
        if not self._cluster.broker_is_up:
            self._cluster.broker.start()

    def _stop_broker(self, fault: Fault) -> Undo | bool:
        if (process := self._running_broker()) is None:
            return False
        process.terminate()
        process.wait()
        self._start_broker()
        return True

    def _flush_broker(self, fault: Fault) -> Undo | bool:
        if not self._cluster.broker_is_up:
            return False
        self._cluster.flush_broker()
        return True

    def _crash_database(self, fault: Fault) -> Undo | bool:
        if not self._cluster.database_is_up:
            return False
        self._cluster.crash_database()
        return self._down(fault), self._start_database

    def _start_database(self) -> None:
        if not self._cluster.database_is_up:
            self._cluster.restart_database()

    def _cut_connections(self, fault: Fault) -> Undo | bool:
        if not self._cluster.database_is_up:
            return False
        self._cluster.cut_connections()
        return True
