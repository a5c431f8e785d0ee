"""One POST to a stranger's server: to an address that was checked, in bounded time, reading little of the answer."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from service.webhooks.addresses import Addresses, AddressRefused, NameUnknown
from service.webhooks.deliveries import GONE, Outcome

READ_AT_MOST = 64 << 10
"""Bytes of an answer's body that are read, and dropped, so that a receiver can finish writing it."""
_ADDRESSES_TRIED = 4
_THROTTLED = frozenset({429, 503})


class Wire:
    """Sends webhooks. No redirect is followed, no cookie kept, no proxy of the environment used, no connection shared.

    Names are resolved by `addresses` alone: requests go to an IP address, with the name in `Host` and in the TLS
    handshake, whose certificate must be the name's.
    """

    def __init__(self, addresses: Addresses, *, seconds: float = 15.0, verify: ssl.SSLContext | None = None) -> None:
        self._addresses, self._seconds = addresses, seconds
        # A kept connection would be chosen by its IP address, whatever name it was made for.
        self._transport = httpx.AsyncHTTPTransport(
            verify=verify or httpx.create_ssl_context(), limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send `body`; every failure is an outcome. `seconds` bound all of it, the name's resolution included."""
        started = time.monotonic()
        seen: list[httpx.Response] = []
        error: str | None = None
        try:
            async with asyncio.timeout(self._seconds):
                await self._exchange(url, headers, body, seen)
        except (AddressRefused, NameUnknown, TimeoutError, httpx.TransportError, httpx.InvalidURL) as failure:
            error = None if seen else _class_of(failure)  # a status that has come counts, however its body ended
        seconds = round(time.monotonic() - started, 3)
        if not seen:
            return Outcome(None, error, seconds)
        return Outcome(seen[0].status_code, _fault_of(seen[0].status_code), seconds, _retry_after(seen[0]))

    async def _exchange(self, url: str, headers: Mapping[str, str], body: bytes, seen: list[httpx.Response]) -> None:
        addresses = await asyncio.to_thread(self._addresses.of, url)
        response = await self._connect(url, addresses[:_ADDRESSES_TRIED], headers, body)
        seen.append(response)
        read = 0
        try:
            async for piece in response.aiter_raw():
                read += len(piece)
                if read >= READ_AT_MOST:
                    break
        finally:
            await response.aclose()

    async def _connect(self, url: str, addresses: list[str], headers: Mapping[str, str], body: bytes) -> httpx.Response:
        for address in addresses[:-1]:
            try:
                return await self._transport.handle_async_request(self._request(url, address, headers, body))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._transport.handle_async_request(self._request(url, addresses[-1], headers, body))

    def _request(self, url: str, address: str, headers: Mapping[str, str], body: bytes) -> httpx.Request:
        parts = urlsplit(url)
        own = {
            "Host": parts.netloc,
            "User-Agent": "Secateur-Webhooks/1",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
            "Content-Type": "application/json",
        }
        timeout = httpx.Timeout(self._seconds, connect=self._seconds / 3)
        return httpx.Request(
            "POST",
            httpx.URL(url).copy_with(host=address),
            headers={**own, **headers},
            content=body,
            extensions={"timeout": timeout.as_dict(), "sni_hostname": parts.hostname},
        )


def _class_of(failure: Exception) -> str:
    match failure:
        case AddressRefused():
            return "address_refused"
        case NameUnknown():
            return "name_unknown"
        case TimeoutError() | httpx.TimeoutException():
            return "timeout"
        case httpx.ConnectError():
            return "tls_failed" if _from_tls(failure) else "connect_failed"
        case httpx.RemoteProtocolError():
            return "not_http"
    return "connection_lost"


def _from_tls(failure: BaseException) -> bool:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _fault_of(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if status == GONE:
        return "gone"
    return "redirected" if 300 <= status < 400 else "refused"


def _retry_after(response: httpx.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    asked = response.status_code in _THROTTLED and given.isascii() and given.isdigit() and len(given) < 10
    return float(given) if asked else None
