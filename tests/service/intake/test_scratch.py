from pathlib import Path

import pytest

from service.errors import InsufficientStorage
from service.intake.scratch import sweep, upload_folder


def test_a_folder_lives_as_long_as_its_upload(tmp_path: Path) -> None:
    with upload_folder(tmp_path) as folder:
        (folder / "half").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), upload_folder(tmp_path) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not folder.exists()


def test_the_sweeper_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    assert sweep(tmp_path) == 0
    dead = tmp_path / "uploads" / "dead"
    dead.mkdir(parents=True)
    (dead / "half").write_text("x")
    with upload_folder(tmp_path) as living:
        assert sweep(tmp_path) == 1
        assert living.exists()
    assert not dead.exists()


def test_a_full_disk_is_507(tmp_path: Path) -> None:
    with pytest.raises(InsufficientStorage), upload_folder(tmp_path), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert list((tmp_path / "uploads").iterdir()) == []
