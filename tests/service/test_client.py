"""The client against a service that misbehaves on demand; every test runs on both clients."""

import asyncio
import base64
import hashlib
import inspect
import io
import tarfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import errors
from service.client import AsyncClient, Client, Unreachable, UnusableFolder

Handler = Callable[[httpx.Request], httpx.Response]
Invoke = Callable[..., Any]


def sync_invoke(handler: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of `Client`."""
    with Client("http://service", "sct_key", transport=httpx.MockTransport(handler)) as client:
        return getattr(client, method)(*args, **kwargs)


def async_invoke(handler: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of `AsyncClient`."""

    async def go() -> Any:
        async with AsyncClient("http://service", "sct_key", transport=httpx.MockTransport(handler)) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run(go())


@pytest.fixture(params=[sync_invoke, async_invoke], ids=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Invoke:
    """Both clients, one after the other."""
    return typing.cast(Invoke, request.param)


def problem(status: int, **fields: Any) -> httpx.Response:
    """A problem document."""
    return httpx.Response(
        status, json={"status": status, **fields}, headers={"content-type": "application/problem+json"}
    )


def public_methods(kind: type) -> dict[str, str]:
    """Names and signatures, the client itself left out."""
    named = inspect.getmembers(kind, inspect.isfunction)
    return {name: str(inspect.signature(method)) for name, method in named if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    sync, other = public_methods(Client), public_methods(AsyncClient)
    sync.pop("close")
    other.pop("aclose")
    assert sync == other
    assert len(sync) == 49
    assert all(getattr(Client, name).__doc__ for name in sync)


def test_sends_the_key_and_returns_json(invoke: Invoke) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"id": "job_1"})

    assert invoke(handler, "show_job", "job_1", wait=5) == {"id": "job_1"}
    assert seen[0].headers["authorization"] == "Bearer sct_key"
    assert seen[0].headers["prefer"] == "wait=5"
    assert seen[0].url == "http://service/v1/jobs/job_1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, errors.Unauthorized), (404, errors.NotFound), (409, errors.Conflict), (422, errors.Invalid)],
)
def test_problem_documents_become_the_services_own_errors(
    invoke: Invoke, status: int, kind: type[errors.SecateurError]
) -> None:
    fault = {"pointer": "/pruning/cuts/0/ratio", "detail": "between 0 and 1"}
    answer = problem(status, code="SOME_CODE", detail="what to do", errors=[fault], request_id="req_1")
    with pytest.raises(kind) as caught:
        invoke(lambda _: answer, "submit_job", {})
    assert (caught.value.code, caught.value.detail) == ("SOME_CODE", "what to do")
    assert caught.value.errors == (errors.FieldError("/pruning/cuts/0/ratio", "between 0 and 1"),)
    assert caught.value.extra == {"request_id": "req_1"}


def test_an_answer_of_a_proxy_is_an_error_with_its_status(invoke: Invoke) -> None:
    with pytest.raises(errors.SecateurError) as caught:
        invoke(lambda _: httpx.Response(418, text="<html>"), "list_models")
    assert caught.value.status == 418


def test_an_unavailable_service_is_asked_again_with_the_same_idempotency_key(
    invoke: Invoke, pauses: list[float]
) -> None:
    keys = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ConnectError("refused")
        return problem(503) if len(keys) == 2 else httpx.Response(202, json={"id": "job_1"})

    assert invoke(handler, "submit_job", {"name": "x"})["id"] == "job_1"
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert pauses == [0.25, 0.5]


def test_gives_up_in_the_end(invoke: Invoke, pauses: list[float]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unreachable, match="http://service"):
        invoke(handler, "list_jobs")
    assert len(pauses) == 4


def test_an_inspection_is_ordered_of_a_model(invoke: Invoke) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json={"id": "job_1"})

    assert invoke(handler, "inspect_model", "mdl_1", {"rows": 8}, idempotency_key="once")["id"] == "job_1"
    assert seen[0].url == "http://service/v1/models/mdl_1/inspections"
    assert (seen[0].content, seen[0].headers["idempotency-key"]) == (b'{"rows":8}', "once")


def test_lists_go_on_over_pages(invoke: Invoke) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        rows = [{"id": f"mdl_{n}"} for n in range(int(request.url.params["limit"]))]
        return httpx.Response(200, json={"data": rows, "next_cursor": "more" if first else None})

    assert len(invoke(handler, "list_models", limit=130)) == 130
    assert len(invoke(handler, "list_models", limit=None)) == 200


def test_job_filters_reach_the_query(invoke: Invoke) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [dict(request.url.params)], "next_cursor": None})

    asked = invoke(handler, "list_jobs", status="failed", metadata={"team": "search"}, limit=5)[0]
    assert asked == {"status": "failed", "metadata[team]": "search", "limit": "5"}


def job_state(status: str, fraction: float) -> dict[str, Any]:
    """A job as far as `watch_job` looks at it."""
    return {"id": "job_1", "status": status, "progress": {"fraction": fraction}}


def test_watch_tells_every_change_and_survives_a_restart(invoke: Invoke, pauses: list[float]) -> None:
    states = [job_state("queued", 0), job_state("running", 0.2), job_state("running", 0.2), None,
              job_state("running", 0.9), job_state("succeeded", 1)]  # fmt: skip
    left = iter(states)

    def handler(request: httpx.Request) -> httpx.Response:
        state = next(left)
        if state is None:
            raise httpx.ReadError("connection reset")
        return httpx.Response(200, json=state)

    told: list[Any] = []
    assert invoke(handler, "watch_job", "job_1", told.append)["status"] == "succeeded"
    assert [(job["status"], job["progress"]["fraction"]) for job in told] == [
        ("queued", 0), ("running", 0.2), ("running", 0.9), ("succeeded", 1),
    ]  # fmt: skip


def test_events_are_read_to_the_end(invoke: Invoke) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("after") == "evt_2":
            return httpx.Response(200, json={"data": [{"id": "evt_3"}], "next_cursor": None})
        return httpx.Response(200, json={"data": [{"id": "evt_1"}, {"id": "evt_2"}], "next_cursor": "evt_2"})

    assert [event["id"] for event in invoke(handler, "job_events", "job_1")] == ["evt_1", "evt_2", "evt_3"]


# Uploads


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Files of a model directory, some of which are not to be sent."""
    folder = tmp_path / "network"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 3000)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "onnx" / "model.onnx").write_text("never kept")
    (folder / "pytorch_model.bin").write_text("would refuse the upload")
    return folder


def test_a_folder_is_sent_as_a_tar_of_known_length_and_digest(invoke: Invoke, model_folder: Path) -> None:
    received: list[tuple[httpx.Request, bytes]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        received.append((request, request.content))
        return httpx.Response(201, json={"id": "mdl_1"})

    moved: list[tuple[int, int]] = []
    assert invoke(handler, "push_model", model_folder, progress=lambda *at: moved.append(at))["id"] == "mdl_1"
    request, body = received[0]
    assert request.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in request.headers
    assert request.headers["content-type"] == "application/x-tar"
    assert request.url.params["name"] == "network"
    digest = repr_digest(body)
    assert request.headers["repr-digest"] == digest
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert tar.getnames() == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert moved[-1] == (len(body), len(body))


def repr_digest(body: bytes) -> str:
    """The field `Repr-Digest` (RFC 9530) of a body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def test_a_repeated_upload_sends_the_same_bytes(invoke: Invoke, pauses: list[float], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n' * 20_000)
    (tmp_path / "test.csv").write_text("text,label\na,0\n")
    bodies: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        assert int(request.headers["content-length"]) == len(request.content)
        return problem(503) if len(bodies) == 1 else httpx.Response(201, json={"id": "ds_1"})

    assert invoke(handler, "push_dataset", tmp_path, "text-classification")["id"] == "ds_1"
    assert bodies[0] == bodies[1]
    assert bodies[0].count(b"Content-Disposition") == 2
    assert b'name="train"; filename="train.jsonl"' in bodies[0]


@pytest.mark.parametrize("method", ["push_model", "push_dataset"])
def test_a_folder_without_anything_to_send_is_refused_before_any_request(
    invoke: Invoke, tmp_path: Path, method: str
) -> None:
    extra = ("text-classification",) if method == "push_dataset" else ()
    with pytest.raises(UnusableFolder):
        invoke(lambda _: httpx.Response(500), method, tmp_path, *extra)


def test_two_files_for_one_split_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "train.csv").write_text("text")
    with pytest.raises(UnusableFolder, match=r"train\.jsonl and train\.csv"):
        invoke(lambda _: httpx.Response(500), "push_dataset", tmp_path, "text-classification")
