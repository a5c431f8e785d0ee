"""How the client sends a model file by file, against a service that misbehaves on demand; every test on both."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import client_models, errors
from service.client import UnusableFolder
from tests.service.test_client import Invoke, async_invoke, problem, sync_invoke

CHUNK = 1000


@pytest.fixture(params=[sync_invoke, async_invoke], ids=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Any:
    """Both clients, one after the other."""
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two files that is sent in six chunks."""
    monkeypatch.setattr(client_models, "CHUNK", CHUNK)
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 20)
    (folder / "pytorch_model.bin").write_text("would refuse the upload")
    return folder


Fault = Callable[[httpx.Request], httpx.Response | None]


class Tus:
    """A service that keeps what it is sent; `faults` answer instead of it, one request each."""

    def __init__(self, *faults: Fault, present: tuple[str, ...] = ()) -> None:
        self.faults = list(faults)
        self.present = present
        self.kept: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self.completed = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        if request.method in ("PATCH", "HEAD") and self.faults and (answer := self.faults.pop(0)(request)):
            return answer
        if request.url.path == "/v1/models":
            self.keys.add(request.headers["idempotency-key"])
            return self._begin(json.loads(request.content)["files"])
        if request.url.path.endswith("/complete"):
            self.completed = True
            return httpx.Response(200, json={"id": "mdl_1", "state": "ready"})
        return self._tus(request)

    def _begin(self, files: list[dict[str, Any]]) -> httpx.Response:
        uploads = []
        for number, file in enumerate(files):
            here = file["size"] if file["path"] in self.present else 0
            self.kept[f"/v1/uploads/upl_{number}"] = bytes(here)
            state = "present" if here else "needed"
            url = f"https://elsewhere.example/v1/uploads/upl_{number}"
            uploads.append({"path": file["path"], "state": state, "upload_url": url, "offset": here})
        return httpx.Response(201, json={"id": "mdl_1", "state": "uploading", "uploads": uploads})

    def _tus(self, request: httpx.Request) -> httpx.Response:
        kept = self.kept[request.url.path]
        assert request.url.host == "service", (
            "the key goes to the service that it belongs to, whatever the address says"
        )
        assert request.headers["tus-resumable"] == "1.0.0"
        if request.method == "PATCH":
            assert request.headers["content-type"] == "application/offset+octet-stream"
            digest = base64.b64encode(hashlib.sha256(request.content).digest()).decode()
            assert request.headers["upload-checksum"] == f"sha256 {digest}"
            if int(request.headers["upload-offset"]) != len(kept):
                return problem(409, code="OFFSET_MISMATCH")
            self.kept[request.url.path] = kept = kept + request.content
        return httpx.Response(204, headers={"Upload-Offset": str(len(kept))})

    def take_silently(self, request: httpx.Request) -> httpx.Response:
        """Keep a chunk, and lose the answer."""
        self._tus(request)
        raise httpx.ReadError("reset")


def reset(request: httpx.Request) -> httpx.Response:
    """The connection breaks."""
    raise httpx.WriteError("reset")


def test_every_chunk_is_sent_once(invoke: Invoke, folder: Path) -> None:
    tus, moved = Tus(), list[tuple[int, int]]()
    model = invoke(tus, "push_model", folder, progress=lambda *at: moved.append(at))
    assert model["state"] == "ready" and tus.completed
    assert list(tus.kept.values()) == [b"{}", bytes(range(256)) * 20]
    assert tus.requests.count("PATCH /v1/uploads/upl_1") == 6
    assert "HEAD /v1/uploads/upl_1" not in tus.requests
    assert max(moved) == moved[-1] == (5122, 5122)


def test_what_is_present_is_not_sent(invoke: Invoke, folder: Path) -> None:
    tus, moved = Tus(present=("model.safetensors",)), list[tuple[int, int]]()
    invoke(tus, "push_model", folder, progress=lambda *at: moved.append(at))
    assert [request for request in tus.requests if request.startswith("PATCH")] == ["PATCH /v1/uploads/upl_0"]
    assert moved[-1] == (5122, 5122)


@pytest.mark.parametrize("archive", [True, None])
def test_a_small_model_may_go_as_an_archive(
    invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch, archive: bool | None
) -> None:
    monkeypatch.setattr(client_models, "CHUNK", 1_000_000)
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"id": "mdl_1"})

    invoke(handler, "push_model", folder, archive=archive)
    assert [request.headers["content-type"] for request in seen] == ["application/x-tar"]


def test_a_small_model_may_go_file_by_file(invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_models, "CHUNK", 1_000_000)
    tus = Tus()
    assert invoke(tus, "push_model", folder, archive=False)["state"] == "ready"


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        lambda _: problem(503),
        lambda _: problem(423, code="UPLOAD_LOCKED"),
        lambda _: problem(460, code="CHECKSUM_MISMATCH"),
        lambda _: problem(409, code="OFFSET_MISMATCH"),
        lambda _: problem(400, code="BODY_INCOMPLETE"),
    ],
    ids=["reset", "503", "423", "460", "409", "400"],
)
def test_what_may_pass_is_tried_again_from_where_the_file_ends(
    invoke: Invoke, folder: Path, pauses: list[float], fault: Fault
) -> None:
    tus = Tus(fault, fault, lambda _: None, fault)
    assert invoke(tus, "push_model", folder)["state"] == "ready"
    assert list(tus.kept.values()) == [b"{}", bytes(range(256)) * 20]
    assert len(pauses) == 3


def test_a_chunk_whose_answer_was_lost_is_not_sent_again(invoke: Invoke, folder: Path, pauses: list[float]) -> None:
    tus = Tus(present=("config.json",))
    tus.faults = [tus.take_silently]
    assert invoke(tus, "push_model", folder)["state"] == "ready"
    assert tus.requests.count("PATCH /v1/uploads/upl_1") == 6
    assert tus.requests.count("HEAD /v1/uploads/upl_1") == 1


def test_gives_up_after_a_while(invoke: Invoke, folder: Path, pauses: list[float]) -> None:
    tus = Tus(*[lambda _: problem(503)] * 100, present=("config.json",))
    with pytest.raises(errors.Unavailable):
        invoke(tus, "push_model", folder)
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 10, 10]
    assert not tus.completed


@pytest.mark.parametrize(("status", "kind"), [(507, errors.InsufficientStorage), (413, errors.PayloadTooLarge)])
def test_what_cannot_pass_ends_the_push_at_once(
    invoke: Invoke, folder: Path, pauses: list[float], status: int, kind: type[Exception]
) -> None:
    tus = Tus(*[lambda _: problem(status)] * 100)
    with pytest.raises(kind):
        invoke(tus, "push_model", folder)
    assert (pauses, tus.completed) == ([], False)


def test_an_upload_that_is_gone_is_judged_by_the_completion(invoke: Invoke, folder: Path) -> None:
    tus = Tus(lambda _: problem(404), present=("config.json",))
    assert invoke(tus, "push_model", folder)["state"] == "ready"


def test_the_completion_is_waited_for(invoke: Invoke, folder: Path, pauses: list[float]) -> None:
    tus, answers = Tus(), [problem(503), problem(423, code="UPLOAD_LOCKED"), problem(423, code="UPLOAD_LOCKED")]

    def handler(request: httpx.Request) -> httpx.Response:
        return answers.pop(0) if request.url.path.endswith("/complete") and answers else tus(request)

    assert invoke(handler, "push_model", folder)["state"] == "ready"
    assert pauses == [0.25, 1.0, 1.0]


def test_a_refused_model_is_an_error(invoke: Invoke, folder: Path) -> None:
    tus = Tus()

    def handler(request: httpx.Request) -> httpx.Response:
        refused = problem(422, code="WEIGHTS_NOT_FINITE", detail="A tensor has NaN or infinite values.")
        return refused if request.url.path.endswith("/complete") else tus(request)

    with pytest.raises(errors.Invalid, match="NaN"):
        invoke(handler, "push_model", folder)


def test_a_file_that_is_cut_short_while_it_is_sent_is_told(invoke: Invoke, folder: Path) -> None:
    def shorten(_: httpx.Request) -> None:
        (folder / "model.safetensors").write_bytes(b"x")

    with pytest.raises(UnusableFolder, match="changed"):
        invoke(Tus(shorten, present=("config.json",)), "push_model", folder)
