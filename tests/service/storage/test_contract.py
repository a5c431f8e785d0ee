"""What every kind of storage promises."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.storage import STORAGES, Storage, StorageMissing, UnusableStorage, open_storage
from tests.object_store import S3Server

MIB = 1 << 20
Source = Callable[..., Path]


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/storage")
    server: S3Server = request.getfixturevalue("s3")
    return open_storage(server.bucket())


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Makes finished files on this machine."""

    def make(content: bytes = b"weights") -> Path:
        path = tmp_path / "source"
        path.write_bytes(content)
        return path

    return make


def test_put_moves_the_file_in(storage: Storage, source: Source) -> None:
    path = source()
    storage.put("models/mdl_1/config.json", path)
    assert not path.exists()
    assert storage.size("models/mdl_1/config.json") == 7
    with storage.open("models/mdl_1/config.json") as file:
        assert file.read() == b"weights"


def test_a_file_of_several_parts_comes_back_as_it_was(storage: Storage, source: Source) -> None:
    content = os.urandom(33 * MIB)
    storage.put("models/mdl_1/model.safetensors", source(content))
    with storage.open("models/mdl_1/model.safetensors") as file:
        assert file.read() == content


def test_a_reader_reads_any_range_in_any_order(storage: Storage, source: Source) -> None:
    content = os.urandom(3 * MIB + 5)
    storage.put("a", source(content))
    with storage.open("a") as file:
        for start, length in ((2 * MIB, 10), (0, 5), (5, MIB), (3 * MIB, 100), (3 * MIB + 5, 1), (7, 0)):
            file.seek(start)
            assert file.read(length) == content[start : start + length]
        assert file.seek(-3, os.SEEK_END) == 3 * MIB + 2
        assert file.read() == content[-3:]


def test_an_empty_file_is_a_file(storage: Storage, source: Source) -> None:
    storage.put("models/empty", source(b""))
    assert storage.size("models/empty") == 0
    with storage.open("models/empty") as file:
        assert file.read() == b""


def test_a_second_put_replaces_the_first(storage: Storage, source: Source) -> None:
    storage.put("a/b", source(b"first"))
    storage.put("a/b", source(b"second"))
    with storage.open("a/b") as file:
        assert file.read() == b"second"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/./b", "a/", "nul\0"])
def test_keys_stay_below_the_root(storage: Storage, source: Source, key: str) -> None:
    path = source()
    for ask in (storage.open, storage.size, lambda key: storage.put(key, path)):
        with pytest.raises(ValueError, match="key"):
            ask(key)


def test_missing_files_are_told_apart(storage: Storage, tmp_path: Path) -> None:
    for ask in (storage.open, storage.size, lambda key: storage.link(key, tmp_path / "linked")):
        with pytest.raises(StorageMissing):
            ask("nothing/here")
    assert not (tmp_path / "linked").exists()


def test_delete_prefix_takes_one_folder_or_one_file_and_can_be_repeated(storage: Storage, source: Source) -> None:
    for key in ("m/1/a", "m/1/sub/b", "m/10/a", "m/1.json", "m/2"):
        storage.put(key, source())
    for prefix in ("m/1/", "m/1", "m/2", "nothing"):
        storage.delete_prefix(prefix)
    assert sorted(storage.list("m")) == ["m/1.json", "m/10/a"]


def test_list_keeps_what_lies_in_one_folder_together(storage: Storage, source: Source) -> None:
    keys = ["models/1/a", "models/1/b/c", "models/2/a", "models/3/a"]
    for key in reversed(keys):
        storage.put(key, source())
    storage.put("models2/a", source())
    assert list(storage.list("models")) == keys
    assert list(storage.list("models/1/")) == keys[:2]
    assert list(storage.list("nothing")) == []


def test_prefixes_are_what_lies_so_deep(storage: Storage, source: Source) -> None:
    for key in ("m/1/a/x", "m/1/a/y/z", "m/1/b/x", "m/2/a/x", "m2/1/a/x"):
        storage.put(key, source())
    assert list(storage.prefixes("m", 2)) == ["m/1", "m/2"]
    assert list(storage.prefixes("m", 3)) == ["m/1/a", "m/1/b", "m/2/a"]
    assert list(storage.prefixes("m/1", 3)) == ["m/1/a", "m/1/b"]
    assert list(storage.prefixes("nothing", 2)) == []


@pytest.mark.parametrize("name", ["ünï/café.json", "a b/c+d&e?f=g#h%2F", "~!*'()/;:@,$"])
def test_any_name_is_kept(storage: Storage, source: Source, name: str) -> None:
    storage.put(f"n/{name}", source(b"x"))
    assert list(storage.list("n")) == [f"n/{name}"]
    with storage.open(f"n/{name}") as file:
        assert file.read() == b"x"


def test_a_link_outlives_its_key(storage: Storage, source: Source, tmp_path: Path) -> None:
    storage.put("models/mdl_1/a", source())
    storage.link("models/mdl_1/a", tmp_path / "linked")
    storage.delete_prefix("models/mdl_1")
    assert (tmp_path / "linked").read_bytes() == b"weights"


def test_a_presigned_address_gives_the_file_or_there_is_none(storage: Storage, source: Source) -> None:
    storage.put("a/b", source())
    url = storage.presigned_url("a/b", filename="b.bin", media_type="application/octet-stream")
    if url is None:
        return
    assert urlsplit(url).scheme == "http"
    answer = httpx.get(url, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"weights")
    assert 'filename="b.bin"' in answer.headers["content-disposition"]


def test_the_url_chooses_the_storage() -> None:
    assert set(STORAGES) == {"file", "s3"}
    with pytest.raises(UnusableStorage, match=r"file://, s3://"):
        open_storage("gopher://x")
