import errno
import os
from pathlib import Path

import pytest

from service.errors import InsufficientStorage
from service.storage import STORAGES, StorageMissing, open_storage
from service.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def _source(tmp_path: Path, content: bytes = b"weights") -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


def test_put_moves_the_file_in(storage: LocalStorage, tmp_path: Path) -> None:
    source = _source(tmp_path)
    storage.put("models/mdl_1/config.json", source)
    assert not source.exists()
    assert storage.size("models/mdl_1/config.json") == 7
    with storage.open("models/mdl_1/config.json") as file:
        file.seek(2)
        assert file.read() == b"ights"


def test_put_over_another_file_system_copies_and_leaves_no_half(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def across(self: Path, target: Path) -> Path:
        if self.name == "source":
            raise OSError(errno.EXDEV, "another file system")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    storage.put("a/b", _source(tmp_path))
    assert list(storage.list("a")) == ["a/b"]
    assert not (tmp_path / "source").exists()


def test_a_full_disk_is_507_and_leaves_nothing(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InsufficientStorage):
        storage.put("b", _source(tmp_path))
    assert not (storage.root / "b").exists()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/./b", "a/", "nul\0"])
def test_keys_stay_below_the_root(storage: LocalStorage, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        storage.open(key)


def test_missing_files_are_told_apart(storage: LocalStorage) -> None:
    for ask in (storage.open, storage.size):
        with pytest.raises(StorageMissing):
            ask("nothing/here")


def test_links_are_not_followed(storage: LocalStorage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (storage.root / "link").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        storage.open("link")


def test_delete_prefix_takes_one_folder_and_can_be_repeated(storage: LocalStorage, tmp_path: Path) -> None:
    for key in ("m/1/a", "m/1/sub/b", "m/10/a"):
        storage.put(key, _source(tmp_path))
    storage.delete_prefix("m/1/")
    storage.delete_prefix("m/1")
    assert list(storage.list("m")) == ["m/10/a"]


def test_the_url_chooses_the_storage(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"file://{tmp_path}/s"), LocalStorage)
    with pytest.raises(ValueError, match="file://"):
        open_storage("gopher://x")
    assert set(STORAGES) == {"file"}


def test_free_bytes_is_the_disks_room(storage: LocalStorage) -> None:
    free = storage.free_bytes()
    assert free is not None
    assert free > 0


@pytest.mark.parametrize("links", [True, False])
def test_a_link_outlives_its_key(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def across(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    if not links:
        monkeypatch.setattr(os, "link", across)
    storage.put("models/mdl_1/a", _source(tmp_path))
    storage.link("models/mdl_1/a", tmp_path / "linked")
    assert ((tmp_path / "linked").stat().st_nlink == 2) == links
    storage.delete_prefix("models/mdl_1")
    assert (tmp_path / "linked").read_bytes() == b"weights"
    with pytest.raises(StorageMissing):
        storage.link("models/mdl_1/a", tmp_path / "again")
