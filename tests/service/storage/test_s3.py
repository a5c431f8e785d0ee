"""What only an object store does: parts, checksums, faults of the network, keys that nobody may see."""

import base64
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import logs
from service.errors import InsufficientStorage, Unavailable
from service.storage import Storage, StorageMissing, UnusableStorage, open_storage
from tests.object_store import ENVIRONMENT, FaultyProxy, S3Server, Spoil

MIB = 1 << 20
WITHOUT_BOTO = """
import sys
sys.modules["boto3"] = None
from service.storage import open_storage
open_storage("file:///tmp")
try:
    open_storage("s3://bucket")
except ValueError as error:
    print(error)
"""

Through = Callable[[Spoil], Storage]


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """Between the storage and the store."""
    proxy = FaultyProxy(s3)
    yield proxy
    proxy.close()


@pytest.fixture
def url(s3: S3Server) -> str:
    """An empty bucket, without the proxy."""
    return s3.bucket()


@pytest.fixture
def through(proxy: FaultyProxy, url: str) -> Through:
    """The storage of `url` behind a proxy that spoils requests."""

    def open_spoiled(spoil: Spoil) -> Storage:
        proxy.spoil = spoil
        return open_storage(proxy.address(url))

    return open_spoiled


def file_of(tmp_path: Path, content: bytes) -> Path:
    """A finished file on this machine."""
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


def never(method: str, path: str, nth: int) -> str | None:
    """No fault."""
    return None


def test_every_part_travels_with_its_checksum(through: Through, proxy: FaultyProxy, tmp_path: Path) -> None:
    through(never).put("big", file_of(tmp_path, os.urandom(33 * MIB)))
    parts = [(headers, body) for method, path, headers, body in proxy.seen if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 3
    for headers, body in parts:
        told = {name.lower(): value for name, value in headers.items()}
        assert told["x-amz-checksum-crc32"] == base64.b64encode(zlib.crc32(body).to_bytes(4)).decode()


@pytest.mark.parametrize("size", [7, 20 * MIB], ids=["whole", "in parts"])
def test_what_arrived_damaged_is_refused_and_leaves_nothing(
    through: Through, s3: S3Server, url: str, tmp_path: Path, size: int
) -> None:
    storage = through(lambda method, path, nth: "deny" if method == "PUT" else None)
    source = file_of(tmp_path, bytes(size))
    with pytest.raises(Unavailable) as caught:
        storage.put("m/a", source)
    assert caught.value.code == "STORAGE_AWAY"
    assert source.exists(), "what could not be stored is not lost"
    assert "<Key>" not in s3.inside(url)


def test_an_upload_cut_half_way_is_aborted(through: Through, s3: S3Server, url: str, tmp_path: Path) -> None:
    storage = through(lambda method, path, nth: "drop" if "partNumber=2" in path else None)
    with pytest.raises(Unavailable):
        storage.put("m/big", file_of(tmp_path, bytes(40 * MIB)))
    assert "<Key>" not in s3.inside(url), "no object, and no parts that cost money"


def test_a_deletion_drops_the_parts_of_a_process_that_was_killed(
    through: Through, proxy: FaultyProxy, s3: S3Server, url: str, tmp_path: Path
) -> None:
    left = "drop"

    def spoil(method: str, path: str, nth: int) -> str | None:
        return left if "partNumber=2" in path or (method == "DELETE" and "uploadId" in path) else None

    storage = through(spoil)
    with pytest.raises(Unavailable):
        storage.put("models/mdl_1/big", file_of(tmp_path, bytes(40 * MIB)))
    assert list(storage.list("models")) == []
    with pytest.raises(StorageMissing):
        storage.size("models/mdl_1/big")
    assert "<UploadId>" in s3.inside(url)
    proxy.spoil = never
    storage.delete_prefix("models/mdl_1")
    assert "<UploadId>" not in s3.inside(url)


def test_a_busy_store_is_asked_again(through: Through, tmp_path: Path) -> None:
    storage = through(lambda method, path, nth: "busy" if nth in (1, 3) else None)
    storage.put("a", file_of(tmp_path, b"x"))
    assert storage.size("a") == 1


def test_patience_is_bounded(through: Through, proxy: FaultyProxy) -> None:
    storage = through(lambda method, path, nth: "busy")
    with pytest.raises(Unavailable) as caught:
        storage.size("a")
    assert len(proxy.seen) == 3
    assert caught.value.headers["Retry-After"]


def test_a_broken_read_goes_on_where_it_was(through: Through, proxy: FaultyProxy, tmp_path: Path) -> None:
    content = os.urandom(4 * MIB)
    gets = iter(range(100))
    storage = through(lambda method, path, nth: "cut" if method == "GET" and next(gets) < 2 else None)
    storage.put("a", file_of(tmp_path, content))
    with storage.open("a") as file:
        assert file.read() == content
    ranges = [headers["Range"] for method, _, headers, _ in proxy.seen if method == "GET"]
    assert ranges[0] == "bytes=0-"
    assert len(set(ranges)) == 3, "each time from another byte on"


def test_an_object_that_goes_while_it_is_read_is_missing(through: Through, tmp_path: Path) -> None:
    storage = through(never)
    storage.put("a", file_of(tmp_path, b"x"))
    with storage.open("a") as file:
        storage.delete_prefix("a")
        with pytest.raises(StorageMissing):
            file.read()


def test_one_request_reads_a_file_in_order(through: Through, proxy: FaultyProxy, tmp_path: Path) -> None:
    storage = through(never)
    storage.put("a", file_of(tmp_path, bytes(5 * MIB)))
    proxy.seen.clear()
    with storage.open("a") as file:
        while file.read(100_000):
            pass
    assert [method for method, *_ in proxy.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_no_key_is_in_a_log_or_an_error(
    through: Through, tmp_path: Path, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(level)
    storage = through(lambda method, path, nth: "refuse" if method == "PUT" else None)
    with pytest.raises(Unavailable) as caught:
        storage.put("a", file_of(tmp_path, b"x"))
    told = caplog.text + logs.redact(str(caught.value)) + repr(caught.value.__cause__)
    assert "AccessDenied" in caplog.text, "the operator learns why"
    assert not any(secret in told for secret in (*ENVIRONMENT.values(), "words", "Signature"))


def test_a_store_that_is_full_is_507(through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["tests.object_store"].__dict__["_ANSWERS"], "full", (507, "XMinioStorageFull"))
    storage = through(lambda method, path, nth: "full" if method == "PUT" else None)
    with pytest.raises(InsufficientStorage):
        storage.put("a", file_of(tmp_path, b"x"))


def test_a_store_that_is_not_there_is_away(s3: S3Server, tmp_path: Path) -> None:
    storage = open_storage("s3://bucket/x?endpoint=http://127.0.0.1:1&region=us-east-1")
    for ask in (storage.open, storage.size, storage.delete_prefix, lambda key: list(storage.list(key))):
        with pytest.raises(Unavailable) as caught:
            ask("a")
        assert "127.0.0.1" not in caught.value.detail


def test_without_keys_the_store_is_away(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = open_storage(s3.bucket())
    with pytest.raises(Unavailable):
        storage.size("a")
    assert "NoCredentialsError" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///prefix", "s3://key:secret@bucket", "s3://bucket?endpoint=nothing", "s3://bucket?region=not a one",
     "s3://bucket/a/../b", "s3://bucket?secret_key=hidden", "s3://bucket/a#b"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UnusableStorage) as caught:
        open_storage(url)
    assert not {"secret", "hidden"} & set(str(caught.value).split())


def test_without_the_extra_only_s3_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_BOTO], capture_output=True, text=True)
    assert "pip install 'secateur[s3]'" in done.stdout, done.stderr


def test_the_service_does_not_import_the_library() -> None:
    script = "import sys, service.app, service.cli; print(*{'boto3', 'botocore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
