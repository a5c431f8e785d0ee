"""The Python client of the HTTP API, synchronous (`Client`) and asynchronous (`AsyncClient`), method for method.

    with Client("http://127.0.0.1:8400", key) as client:
        model = client.push_model(Path("minilm"))
        job = client.submit_job({"model_id": model["id"], …})
        job = client.watch_job(job["id"], on_change=print)
        client.pull_job(job["id"], Path("pruned"))

Answers are the API's JSON objects. Errors are those of `service.errors`, by status; `Unreachable` when no answer came.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from service import client_calls as calls
from service import client_downloads as downloads
from service import client_estimates as estimates
from service import client_events as events
from service import client_jobs
from service import client_models as models
from service import client_operations as operations
from service import client_tenants as tenants
from service import client_webhooks as webhooks
from service.client_calls import Answer, Call, Flow, Json, Step, Together, Unreachable, Work
from service.client_files import CorruptDownload, UnusableFolder
from service.errors import SecateurError

__all__ = ["AsyncClient", "Client", "CorruptDownload", "Unreachable", "UnusableFolder"]

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=120.0)
"""Reading is patient: a held answer takes a minute, and the end of a large upload is checked before it is answered."""


def _sync(flow: Callable[P, Flow[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(flow)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._drive(flow(*args, **kwargs))

    return method


def _async(flow: Callable[P, Flow[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    @wraps(flow)
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._drive(flow(*args, **kwargs))

    return method


def _sync_stream(begin: Callable[P, events.Listening]) -> Callable[Concatenate["Client", P], Iterator[Json]]:
    @wraps(begin)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Json]:
        return client._listen(begin(*args, **kwargs))

    return method


def _async_stream(begin: Callable[P, events.Listening]) -> Callable[Concatenate["AsyncClient", P], AsyncIterator[Json]]:
    @wraps(begin)
    def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Json]:
        return client._listen(begin(*args, **kwargs))

    return method


class _Stopped(Exception):
    """A flow beside this one has failed."""


class Client:
    """Talks to one service with one key. Close it, or use it in a `with` block."""

    def __init__(self, url: str, api_key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=False)

    push_model = _sync(models.push_model)
    list_models = _sync(calls.list_models)
    show_model = _sync(calls.show_model)
    inspect_model = _sync(calls.inspect_model)
    delete_model = _sync(calls.delete_model)
    pull_model = _sync(downloads.pull_model)
    download_model_file = _sync(operations.download_model_file)
    model_lineage = _sync(models.model_lineage)
    push_dataset = _sync(calls.push_dataset)
    list_datasets = _sync(calls.list_datasets)
    show_dataset = _sync(calls.show_dataset)
    delete_dataset = _sync(calls.delete_dataset)
    submit_job = _sync(calls.submit_job)
    validate_job = _sync(calls.validate_job)
    estimate_job = _sync(estimates.estimate_job)
    list_jobs = _sync(calls.list_jobs)
    show_job = _sync(calls.show_job)
    watch_job = _sync(calls.watch_job)
    cancel_job = _sync(calls.cancel_job)
    pause_job = _sync(client_jobs.pause_job)
    resume_job = _sync(client_jobs.resume_job)
    retry_job = _sync(client_jobs.retry_job)
    clone_job = _sync(client_jobs.clone_job)
    delete_job = _sync(calls.delete_job)
    job_events = _sync(calls.job_events)
    stream_job_events = _sync_stream(events.stream_job_events)
    job_metrics = _sync(calls.job_metrics)
    job_artifacts = _sync(calls.job_artifacts)
    download_artifact = _sync(downloads.download_artifact)
    pull_job = _sync(downloads.pull_job)
    job_report = _sync(calls.job_report)
    capabilities = _sync(calls.capabilities)
    alive = _sync(operations.alive)
    ready = _sync(calls.ready)
    prometheus_metrics = _sync(operations.prometheus_metrics)
    create_key = _sync(calls.create_key)
    list_keys = _sync(calls.list_keys)
    delete_key = _sync(calls.delete_key)
    show_tenant = _sync(tenants.show_tenant)
    list_audit = _sync(tenants.list_audit)
    create_webhook = _sync(webhooks.create_webhook)
    list_webhooks = _sync(webhooks.list_webhooks)
    show_webhook = _sync(webhooks.show_webhook)
    update_webhook = _sync(webhooks.update_webhook)
    delete_webhook = _sync(webhooks.delete_webhook)
    test_webhook = _sync(webhooks.test_webhook)
    rotate_webhook_secret = _sync(webhooks.rotate_webhook_secret)
    webhook_deliveries = _sync(webhooks.webhook_deliveries)
    redeliver_webhook = _sync(webhooks.redeliver_webhook)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _drive(self, flow: Flow[T], stop: threading.Event | None = None) -> T:
        failure: Exception | None = None
        answer = Answer()
        try:
            step = next(flow)
            while True:
                if stop is not None and stop.is_set():
                    raise _Stopped
                try:
                    failure, answer = None, self._take(step)
                except (SecateurError, Unreachable) as error:
                    failure = error
                step = flow.throw(failure) if failure else flow.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    def _take(self, step: Step) -> Answer:
        if isinstance(step, Call):
            return self._call(step)
        if isinstance(step, Together):
            self._together(step)
        elif isinstance(step, Work):
            step.run()
        else:
            time.sleep(step.seconds)
        return Answer()

    def _together(self, step: Together) -> None:
        stop = threading.Event()
        with ThreadPoolExecutor(step.at_once, thread_name_prefix="secateur") as pool:
            running = [pool.submit(self._drive, flow, stop) for flow in step.flows]
            try:
                for ended in as_completed(running):
                    ended.result()
            except BaseException:  # an interrupt, too: the others end with the request that they are in
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call(self, step: Call) -> Answer:
        content = step.body.pieces() if step.body else None
        try:
            with self._http.stream(**_request(step, content)) as response:
                write = _sink(step, response)
                if write is None:
                    return _answer(response, response.read())
                for piece in response.iter_raw():
                    write(piece)
                return _answer(response, b"")
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def _listen(self, listening: events.Listening) -> Iterator[Json]:
        while not listening.ended:
            try:
                with self._http.stream(**_request(listening.call(), None)) as response:
                    if not response.is_success:
                        raise calls.error_from(response.status_code, response.read())
                    listening.begin(response.status_code)
                    for piece in response.iter_raw():
                        yield from listening.take(piece)
            except httpx.TransportError as error:
                listening.fail(_unreachable(self._http.base_url, error))
            except SecateurError as error:
                listening.fail(error)
            if not listening.ended:
                time.sleep(listening.pause)


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(self, url: str, api_key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=False
        )

    push_model = _async(models.push_model)
    list_models = _async(calls.list_models)
    show_model = _async(calls.show_model)
    inspect_model = _async(calls.inspect_model)
    delete_model = _async(calls.delete_model)
    pull_model = _async(downloads.pull_model)
    download_model_file = _async(operations.download_model_file)
    model_lineage = _async(models.model_lineage)
    push_dataset = _async(calls.push_dataset)
    list_datasets = _async(calls.list_datasets)
    show_dataset = _async(calls.show_dataset)
    delete_dataset = _async(calls.delete_dataset)
    submit_job = _async(calls.submit_job)
    validate_job = _async(calls.validate_job)
    estimate_job = _async(estimates.estimate_job)
    list_jobs = _async(calls.list_jobs)
    show_job = _async(calls.show_job)
    watch_job = _async(calls.watch_job)
    cancel_job = _async(calls.cancel_job)
    pause_job = _async(client_jobs.pause_job)
    resume_job = _async(client_jobs.resume_job)
    retry_job = _async(client_jobs.retry_job)
    clone_job = _async(client_jobs.clone_job)
    delete_job = _async(calls.delete_job)
    job_events = _async(calls.job_events)
    stream_job_events = _async_stream(events.stream_job_events)
    job_metrics = _async(calls.job_metrics)
    job_artifacts = _async(calls.job_artifacts)
    download_artifact = _async(downloads.download_artifact)
    pull_job = _async(downloads.pull_job)
    job_report = _async(calls.job_report)
    capabilities = _async(calls.capabilities)
    alive = _async(operations.alive)
    ready = _async(calls.ready)
    prometheus_metrics = _async(operations.prometheus_metrics)
    create_key = _async(calls.create_key)
    list_keys = _async(calls.list_keys)
    delete_key = _async(calls.delete_key)
    show_tenant = _async(tenants.show_tenant)
    list_audit = _async(tenants.list_audit)
    create_webhook = _async(webhooks.create_webhook)
    list_webhooks = _async(webhooks.list_webhooks)
    show_webhook = _async(webhooks.show_webhook)
    update_webhook = _async(webhooks.update_webhook)
    delete_webhook = _async(webhooks.delete_webhook)
    test_webhook = _async(webhooks.test_webhook)
    rotate_webhook_secret = _async(webhooks.rotate_webhook_secret)
    webhook_deliveries = _async(webhooks.webhook_deliveries)
    redeliver_webhook = _async(webhooks.redeliver_webhook)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _drive(self, flow: Flow[T]) -> T:
        failure: Exception | None = None
        answer = Answer()
        try:
            step = next(flow)
            while True:
                try:
                    failure, answer = None, await self._take(step)
                except (SecateurError, Unreachable) as error:
                    failure = error
                step = flow.throw(failure) if failure else flow.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _take(self, step: Step) -> Answer:
        if isinstance(step, Call):
            return await self._call(step)
        if isinstance(step, Together):
            await self._together(step)
        elif isinstance(step, Work):
            await asyncio.to_thread(step.run)
        else:
            await asyncio.sleep(step.seconds)
        return Answer()

    async def _together(self, step: Together) -> None:
        room = asyncio.Semaphore(step.at_once)

        async def drive(flow: Flow[None]) -> None:
            async with room:
                await self._drive(flow)

        try:
            async with asyncio.TaskGroup() as group:
                for flow in step.flows:
                    group.create_task(drive(flow))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _call(self, step: Call) -> Answer:
        content = _awaited(step.body.pieces()) if step.body else None
        try:
            async with self._http.stream(**_request(step, content)) as response:
                write = _sink(step, response)
                if write is None:
                    return _answer(response, await response.aread())
                async for piece in response.aiter_raw():
                    write(piece)
                return _answer(response, b"")
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    async def _listen(self, listening: events.Listening) -> AsyncIterator[Json]:
        while not listening.ended:
            try:
                async with self._http.stream(**_request(listening.call(), None)) as response:
                    if not response.is_success:
                        raise calls.error_from(response.status_code, await response.aread())
                    listening.begin(response.status_code)
                    async for piece in response.aiter_raw():
                        for event in listening.take(piece):
                            yield event
            except httpx.TransportError as error:
                listening.fail(_unreachable(self._http.base_url, error))
            except SecateurError as error:
                listening.fail(error)
            if not listening.ended:
                await asyncio.sleep(listening.pause)


def _request(call: Call, content: Iterator[bytes] | AsyncIterator[bytes] | None) -> dict[str, Any]:
    """Arguments of httpx's `stream`."""
    # Downloads are verified byte for byte, so nothing may compress them on the way.
    headers = {**call.headers, "Accept-Encoding": "identity"}
    if call.body is not None:
        headers |= {**call.body.headers, "Content-Type": call.body.media_type, "Content-Length": str(call.body.size)}
    request = {"method": call.method, "url": call.path, "params": call.params, "headers": headers, "content": content}
    if call.sink is not None:  # a file may lie elsewhere; the key does not go along
        return request | {"follow_redirects": True}
    return request if call.json is None else request | {"json": call.json}


def _sink(call: Call, response: httpx.Response) -> Callable[[bytes], object] | None:
    if call.sink is None or not response.is_success:
        return None
    return call.sink(response.status_code, response.headers)


def _answer(response: httpx.Response, content: bytes) -> Answer:
    if response.is_success:
        return Answer(response.status_code, response.headers, content)
    raise calls.error_from(response.status_code, content)


def _unreachable(url: httpx.URL, error: httpx.TransportError) -> Unreachable:
    return Unreachable(f"No answer from {url}: {error or type(error).__name__}. Is the service running?")


async def _awaited(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
