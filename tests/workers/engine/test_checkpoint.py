"""Checkpoints on disk: whole or not there, and of no use once a byte is another."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.workers.engine.test_compress import spec_of
from workers.engine import checkpoint
from workers.engine.checkpoint import Checkpoint, Unusable, fingerprint_of, forget_old, read, write

MARK = "a job"
KEPT = Checkpoint(
    {"number": 3, "loss": 0.1},
    {"network": {"weight": torch.arange(6.0).view(2, 3).T, "mask": torch.tensor([True, False])}, "moments": {}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(KEPT, tmp_path / "checkpoints" / "000003", MARK)
    return tmp_path / "checkpoints" / "000003"


def test_what_was_written_is_read(folder: Path) -> None:
    found = read(folder, MARK)
    assert found.state == KEPT.state
    assert set(found.tensors) == {"network", "moments"} and found.tensors["moments"] == {}
    for name, value in KEPT.tensors["network"].items():
        assert torch.equal(found.tensors["network"][name], value)
    listed = json.loads((folder / "checkpoint.json").read_text())["files"]
    assert set(listed) == {path.name for path in folder.iterdir()} - {"checkpoint.json"}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def truncate(folder: Path) -> None:
    file = folder / "network.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / "network.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)


def lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes(b"[1, \xff")


def empty_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("[]")


def date_back(folder: Path) -> None:
    manifest = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(manifest | {"version": 0}))


def point_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"]["../000003/network.safetensors"] = manifest["files"].pop("network.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, lose, lose_manifest, garble_manifest, empty_manifest, date_back, point_elsewhere],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_seen(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(Unusable):
        read(folder, MARK)


def test_another_job_finds_nothing_in_it(folder: Path) -> None:
    with pytest.raises(Unusable):
        read(folder, "another job")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="full"):
        write(KEPT, tmp_path / "checkpoints" / "000001", MARK)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_two_newest_stay(tmp_path: Path) -> None:
    for number in (9, 10, 11):
        write(KEPT, tmp_path / f"{number:06}", MARK)
    forget_old(tmp_path)
    forget_old(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000010", "000011"]


def test_a_fingerprint_is_of_what_changes_the_network() -> None:
    cuts = {"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}]}
    spec = spec_of(pruning=cuts)
    same = spec.model_copy(update={"name": "again", "timeout": 7200, "priority": 9})
    assert fingerprint_of(spec) == fingerprint_of(same)
    assert fingerprint_of(spec) != fingerprint_of(spec.model_copy(update={"seed": 1}))
