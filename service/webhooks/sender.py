"""The loop that sends what the outbox holds. Any number of processes may run one."""

import asyncio
import logging
import ssl
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from service.config import Settings
from service.db import Database
from service.tables import utc_now
from service.webhooks import deliveries, payload, signing
from service.webhooks.addresses import Addresses
from service.webhooks.deliveries import Due, Outcome, Parcel
from service.webhooks.wire import Wire

log = logging.getLogger(__name__)

SLOTS = 32
SLOTS_PER_TENANT = 16
_LEASE_MARGIN = 45.0
"""Seconds beyond the time of a send that a delivery stays this process's: for its transactions, and a stalled host."""
_STOP_SECONDS = 8.0
_AFTER_FAILURE = 10.0


class Sender:
    """One daemon thread of the API process with an event loop of its own; outlives every error of the database."""

    def __init__(
        self, settings: Settings, database: Database, addresses: Addresses, *, verify: ssl.SSLContext | None = None
    ) -> None:
        self._settings, self._database, self._addresses, self._verify = settings, database, addresses, verify
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="webhooks", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._wire: Wire | None = None
        self._sending: dict[asyncio.Task[None], Due] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """End: what is being sent may finish within seconds; the rest comes again when its lease is over."""
        assert self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=_STOP_SECONDS + 2)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(ThreadPoolExecutor(SLOTS + 1, thread_name_prefix="webhooks"))
        self._started.set()
        try:
            while not self._stop.is_set():
                await self._pause(await self._turn())
        finally:
            await self._finish()

    async def _turn(self) -> float:
        """Start what is due; returns the seconds to wait before the next turn."""
        try:
            ready = await asyncio.to_thread(self._due)
        except Exception:
            log.exception("The outbox of webhooks could not be read; it is read again in time")
            return _AFTER_FAILURE
        for item in ready:
            if self._has_room(item):
                self._sending[asyncio.create_task(self._deliver(item))] = item
        return self._settings.webhook_seconds

    async def _pause(self, seconds: float) -> None:
        """Wait for the next turn: less long where slots were taken and one is free again."""
        assert self._stop is not None
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([stop, *self._sending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        self._sending = {task: item for task, item in self._sending.items() if not task.done()}

    def _has_room(self, item: Due) -> bool:
        """Whether one more may be sent: no endpoint and no tenant takes all slots, however slow its receivers are."""
        busy = list(self._sending.values())
        endpoints, tenants = Counter(one.endpoint_id for one in busy), Counter(one.tenant for one in busy)
        return (
            len(busy) < SLOTS
            and endpoints[item.endpoint_id] < deliveries.AT_ONCE_PER_ENDPOINT
            and tenants[item.tenant] < SLOTS_PER_TENANT
            and all(one.id != item.id for one in busy)
        )

    async def _deliver(self, item: Due) -> None:
        try:
            parcel = await asyncio.to_thread(self._claim, item.id)
            if parcel is not None:
                await asyncio.to_thread(self._settle, parcel, await self._post(parcel))
        except Exception:
            log.exception("Delivery %s of endpoint %s is tried again after its lease", item.id, item.endpoint_id)

    async def _post(self, parcel: Parcel) -> Outcome:
        if self._wire is None:  # made late: reading the certificate store takes longer than starting the API otherwise
            self._wire = Wire(self._addresses, seconds=self._settings.webhook_timeout_seconds, verify=self._verify)
        body = payload.body(parcel.type, parcel.happened_at, parcel.data, self._settings.public_url or "")
        headers = signing.headers(parcel.secrets, parcel.event_id, utc_now(), body)
        return await self._wire.post(parcel.url, headers, body)

    async def _finish(self) -> None:
        if self._sending:
            _, late = await asyncio.wait(self._sending, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._wire is not None:
            async with self._wire:
                pass

    def _due(self) -> list[Due]:
        with self._database.session_scope(read_only=True) as session:
            return deliveries.due(session, limit=4 * SLOTS)

    def _claim(self, delivery_id: str) -> Parcel | None:
        with self._database.session_scope() as session:
            return deliveries.claim(session, delivery_id, self._settings.webhook_timeout_seconds + _LEASE_MARGIN)

    def _settle(self, parcel: Parcel, outcome: Outcome) -> None:
        with self._database.session_scope() as session:
            deliveries.settle(session, parcel, outcome, self._settings.webhook_retry_seconds)
