"""Downloads of the client against a service that breaks off, lies or sends what it should not; every test on both."""

import hashlib
import io
import json
import tarfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import main
from service.client import Client, CorruptDownload, Unreachable
from service.commands import connect
from service.downloads import ARCHIVED_MANIFEST
from service.errors import Gone
from service.storage.tar import TarLayout
from tests.service.test_client import Invoke, async_invoke, problem, sync_invoke


@pytest.fixture(params=[sync_invoke, async_invoke], ids=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Any:
    """Both clients, one after the other."""
    return request.param


def archive_of(files: dict[str, bytes]) -> bytes:
    """A tar as the service sends it."""
    layout = TarLayout([(name, len(data)) for name, data in files.items()])
    return b"".join(layout.read(0, layout.size, lambda name: io.BytesIO(files[name])))


class Server:
    """Serves one archive by Range, and the model that it is of; may break off the body at some of its bytes."""

    def __init__(self, content: bytes, *, break_at: typing.Sequence[int] = (), corrupt: bool = False) -> None:
        self.content = content
        self.break_at = list(break_at)
        self.corrupt = corrupt
        self.ranges: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.count("/") == 3:
            return httpx.Response(200, json={"files": listing(FILES)})
        etag = {"ETag": f'"{hashlib.sha256(self.content).hexdigest()}"'}
        if request.method == "HEAD":
            return httpx.Response(200, headers={**etag, "Content-Length": str(len(self.content))})
        wanted = request.headers.get("range")
        assert request.headers.get("if-range") == (etag["ETag"] if wanted else None)
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        if self.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        last = len(self.content) - 1
        headers = etag | ({"Content-Range": f"bytes {start}-{last}/{last + 1}"} if wanted else {})
        stream = Broken(body, self.break_at.pop(0) - start if self.break_at else None)
        return httpx.Response(206 if wanted else 200, headers=headers, stream=stream)


def listing(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Files as a model tells of them."""
    return [{"path": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]


def job_archive_of(files: dict[str, bytes], told: dict[str, bytes] | None = None) -> bytes:
    """The archive of a job whose manifest tells of the files `told`, by default of those that are there."""
    entries = [file | {"archive_path": file["path"]} for file in listing(files if told is None else told)]
    report = {"path": "report/report.html", "archive_path": None, "sha256": "0" * 64}
    return archive_of({**files, ARCHIVED_MANIFEST: json.dumps({"files": [*entries, report]}).encode()})


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that may end in a lost connection."""

    def __init__(self, body: bytes, break_at: int | None) -> None:
        self._body = body
        self._break_at = break_at

    def __iter__(self) -> Iterator[bytes]:
        yield self._body[: self._break_at]
        if self._break_at is not None:
            raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> typing.AsyncIterator[bytes]:
        for piece in self:
            yield piece


FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 100, "onnx/model.onnx": b"onnx"}


def test_a_download_is_verified_and_unpacked(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = invoke(Server(job_archive_of(FILES)), "pull_job", "job_1", out)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    assert found.keys() - FILES.keys() == {ARCHIVED_MANIFEST}
    assert found | FILES == found
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "onnx",
        ARCHIVED_MANIFEST,
    ]


def test_a_broken_download_goes_on_where_it_stopped(invoke: Invoke, pauses: list[float], tmp_path: Path) -> None:
    server = Server(archive_of(FILES), break_at=[5000])
    moved: list[int] = []
    files = invoke(server, "pull_model", "mdl_1", tmp_path, progress=lambda done, total: moved.append(done))
    assert server.ranges == [None, "bytes=5000-"]
    assert moved == [5000, len(server.content)]
    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files} == FILES


def test_a_later_process_goes_on_too(invoke: Invoke, tmp_path: Path) -> None:
    content = archive_of(FILES)
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / f".artifact.{sha256[:16]}.part").write_bytes(content[:7777])
    server = Server(content)
    target = invoke(server, "download_artifact", "art_1", tmp_path / "artifact")
    assert server.ranges == ["bytes=7777-"]
    assert target.read_bytes() == content


def test_other_bytes_than_announced_are_refused_and_forgotten(invoke: Invoke, tmp_path: Path) -> None:
    with pytest.raises(CorruptDownload):
        invoke(Server(archive_of(FILES), corrupt=True), "pull_model", "mdl_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "/absolute", "a/../../b", "a\\b", "C:/x", "new\nline"])
def test_a_name_that_climbs_out_is_refused(invoke: Invoke, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(CorruptDownload):
        invoke(Server(archive_of({name: b"x"})), "pull_model", "mdl_1", out, verify=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(invoke: Invoke, tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(CorruptDownload):
        invoke(Server(buffer.getvalue()), "pull_model", "mdl_1", tmp_path, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link_that_lies_in_the_folder(invoke: Invoke, tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (outside / "kept").write_text("mine")
    (out / "config.json").symlink_to(outside / "kept")
    (out / "onnx").symlink_to(outside)
    with pytest.raises(CorruptDownload):
        invoke(Server(archive_of(FILES)), "pull_model", "mdl_1", out)
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"kept": "mine"}
    assert (out / "config.json").read_text() == "{}"


CHANGED = FILES | {"config.json": b"[]"}
LACKING = {"config.json": FILES["config.json"]}


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (CHANGED, r"config\.json not as promised"),
        (FILES | {"vocab.txt": b"a"}, r"vocab\.txt missing"),
        (LACKING, r"model\.safetensors, onnx/model\.onnx not promised"),
    ],
)
def test_files_that_are_not_those_of_the_manifest_are_refused(
    invoke: Invoke, tmp_path: Path, told: dict[str, bytes], fault: str
) -> None:
    server = Server(job_archive_of(FILES, told))
    with pytest.raises(CorruptDownload, match=fault):
        invoke(server, "pull_job", "job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(invoke(server, "pull_job", "job_1", tmp_path, verify=False)) == 4


@pytest.mark.parametrize("manifest", [None, b"{", b"[]", b'{"files": [{"path": "config.json"}]}', b'{"files": 1}'])
def test_an_archive_without_a_sound_manifest_is_not_called_verified(
    invoke: Invoke, tmp_path: Path, manifest: bytes | None
) -> None:
    files = FILES if manifest is None else FILES | {ARCHIVED_MANIFEST: manifest}
    with pytest.raises(CorruptDownload, match="manifest"):
        invoke(Server(archive_of(files)), "pull_job", "job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_compared_with_what_the_service_tells_of_it(invoke: Invoke, tmp_path: Path) -> None:
    with pytest.raises(CorruptDownload, match=r"config\.json not as promised"):
        invoke(Server(archive_of(CHANGED)), "pull_model", "mdl_1", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(invoke(Server(archive_of(CHANGED)), "pull_model", "mdl_1", tmp_path, verify=False)) == 3


def test_a_download_may_break_often_while_it_moves(invoke: Invoke, pauses: list[float], tmp_path: Path) -> None:
    server = Server(archive_of(FILES), break_at=range(2000, 26000, 2000))
    invoke(server, "download_artifact", "art_1", tmp_path / "artifact")
    assert (tmp_path / "artifact").read_bytes() == server.content
    assert len(server.ranges) == 13
    assert set(pauses) == {0.25}


def test_a_download_that_does_not_move_is_given_up(invoke: Invoke, pauses: list[float], tmp_path: Path) -> None:
    server = Server(archive_of(FILES), break_at=[3000] * 6)
    with pytest.raises(Unreachable):
        invoke(server, "download_artifact", "art_1", tmp_path / "artifact")
    assert server.ranges == [None, *["bytes=3000-"] * 4]
    assert pauses == [0.25, 0.5, 1.0, 2.0]
    assert not (tmp_path / "artifact").exists()


def test_a_body_that_ends_early_without_a_word_goes_on(invoke: Invoke, pauses: list[float], tmp_path: Path) -> None:
    whole = Server(archive_of(FILES))

    def short(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and not whole.ranges:
            whole.ranges.append(None)
            return httpx.Response(200, headers={"ETag": "x"}, stream=Broken(whole.content[:3000], None))
        return whole(request)

    target = invoke(short, "download_artifact", "art_1", tmp_path / "artifact")
    assert target.read_bytes() == whole.content
    assert whole.ranges == [None, "bytes=3000-"]


def test_why_there_is_nothing_to_download_is_told(invoke: Invoke, tmp_path: Path) -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        told = {} if request.method == "HEAD" else {"code": "EXPIRED", "detail": "removed at noon"}
        return problem(410, **told)

    with pytest.raises(Gone, match="removed at noon") as caught:
        invoke(gone, "pull_job", "job_1", tmp_path)
    assert caught.value.code == "EXPIRED"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["jobs", "pull", "job_1"], ["models", "pull", "mdl_1"]])
def test_commands_end_with_3_and_leave_nothing_where_files_differ(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Server(job_archive_of(CHANGED, FILES) if command[0] == "jobs" else archive_of(CHANGED))

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="report") if request.url.path.endswith("/report") else archive(request)

    transport = httpx.MockTransport(handler)
    monkeypatch.setattr(connect, "Client", lambda *_: Client("http://service", "sct_key", transport=transport))
    monkeypatch.setattr(connect, "address", lambda _: ())
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main([*command, str(out)])
    assert ended.value.code == 3
    assert "config.json not as promised" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        main([*command, str(out), "--no-verify"])
    assert not ended.value.code and (out / "config.json").read_bytes() == CHANGED["config.json"]
