import errno
import os
from pathlib import Path

import pytest

from service.errors import InsufficientStorage
from service.storage import StorageMissing, open_storage
from service.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def _source(tmp_path: Path, content: bytes = b"weights") -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


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


def test_links_are_not_followed(storage: LocalStorage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (storage.root / "link").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        storage.open("link")


def test_a_file_url_names_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"file://{tmp_path}/s"), LocalStorage)


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


def test_a_folder_without_a_whole_file_is_a_prefix_too(storage: LocalStorage) -> None:
    for name in ("killed/.a.unfinished", "whole/a"):
        path = storage.root / "models" / name
        path.parent.mkdir(parents=True)
        path.touch()
    (storage.root / "models" / "empty").mkdir()
    assert list(storage.list("models")) == ["models/whole/a"]
    assert list(storage.prefixes("models", 2)) == ["models/empty", "models/killed", "models/whole"]
