"""Compressed folders: smaller, and restored bit for bit by the script that goes with them, run as a stranger would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workers.engine.compressed import compress_folder, verify_compressed
from workers.engine.failures import EngineError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def sparse(shape: tuple[int, ...], zeros: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random weights of which about the share `zeros` is zero."""
    chance = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=chance)
    return values.masked_fill_(torch.rand(shape, generator=chance) < zeros, 0).to(dtype)


def restored(folder: Path, out: Path) -> dict[str, bytes]:
    """Runs the script in the folder; every file that it makes."""
    script = [sys.executable, "-I", str(folder / "unpack.py"), str(folder), str(out)]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Shards of every type, much or little of them zero, with files that a model has besides."""
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    first = {
        f"{share}.{dtype}": sparse((61, 333), share, dtype) for share in (0.0, 0.02, 0.5, 0.97) for dtype in DTYPES
    }
    signed = torch.tensor([0.0, -0.0, float("nan"), -float("inf"), 1e-45]).repeat(999)
    second = {
        "zeros": torch.zeros(100, 77),
        "signed": signed,
        "ids": torch.arange(5000) // 4999,
        "scalar": torch.ones(()),
    }
    second |= {"empty": torch.ones(0, 7), "bytes": torch.zeros(4001, dtype=torch.uint8), "flags": torch.ones(9) > 2}
    save_file(first, folder / "model-00001-of-00002.safetensors", {"format": "pt", "by": 'a "quoted" Ünïcödé'})
    save_file(second, folder / "model-00002-of-00002.safetensors")
    save_file({"dense": sparse((64, 64), 0.9)}, folder / "2_Dense/model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    (folder / "config.json").write_text("{}")
    return folder


def test_every_file_is_restored_bit_for_bit(model: Path, tmp_path: Path) -> None:
    before = contents(model)
    size = compress_folder(model, tmp_path / "small")
    written = contents(tmp_path / "small")
    assert size == sum(len(text) for name, text in written.items() if name.endswith(".safetensors"))
    assert size < sum(len(text) for name, text in before.items() if name.endswith(".safetensors"))
    assert set(written) == {
        "unpack.py", "config.json", "model.safetensors.index.json", "2_Dense/model.bitmask.safetensors",
        "model-00001-of-00002.bitmask.safetensors", "model-00002-of-00002.bitmask.safetensors",
    }  # fmt: skip
    assert restored(tmp_path / "small", tmp_path / "again") == before


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.5 + 1 / 32), (torch.bfloat16, 0.5 + 1 / 16)], ids=str)
def test_half_of_the_weights_take_half_of_the_bytes_and_a_bit_each(
    dtype: torch.dtype, share: float, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    matrix = torch.ones(1024, 2048, dtype=dtype)
    matrix[::2] = 0
    save_file({"a": matrix}, tmp_path / "model/model.safetensors")
    size = compress_folder(tmp_path / "model", tmp_path / "small")
    assert size / (matrix.numel() * matrix.element_size()) == pytest.approx(share, abs=0.005)


def test_the_container_is_a_safetensors_file_of_aligned_masks_and_values(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    tensors = {"a": sparse((301, 33), 0.5, torch.bfloat16), "b": sparse((301, 33), 0.5), "bias": torch.ones(33)}
    save_file(tensors, tmp_path / "model/model.safetensors")
    compress_folder(tmp_path / "model", tmp_path / "small")
    with safe_open(tmp_path / "small/model.bitmask.safetensors", framework="pt") as stored:
        assert set(stored.keys()) == {"a:mask", "a:values", "b:mask", "b:values", "bias"}
        assert torch.equal(stored.get_tensor("bias"), tensors["bias"])
        for name in ("a", "b"):
            assert torch.equal(stored.get_tensor(f"{name}:values"), tensors[name][tensors[name] != 0])
    file = (tmp_path / "small/model.bitmask.safetensors").read_bytes()
    entries = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    widths = {"F32": 4, "BF16": 2, "U8": 1}
    assert all(e["data_offsets"][0] % widths[e["dtype"]] == 0 for n, e in entries.items() if n != "__metadata__")


def test_a_file_with_nothing_to_gain_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"a": sparse((200, 200), 0.01), "bias": torch.zeros(50)}, tmp_path / "model/model.safetensors")
    before = contents(tmp_path / "model")
    compress_folder(tmp_path / "model", tmp_path / "small")
    assert {name: file for name, file in contents(tmp_path / "small").items() if name != "unpack.py"} == before
    assert restored(tmp_path / "small", tmp_path / "again") == before


def test_files_that_are_cut_off_are_refused(model: Path, tmp_path: Path) -> None:
    compress_folder(model, tmp_path / "small")
    packed = tmp_path / "small/2_Dense/model.bitmask.safetensors"
    packed.write_bytes(packed.read_bytes()[:-1])
    script = [sys.executable, "-I", str(tmp_path / "small/unpack.py"), str(tmp_path / "small"), str(tmp_path / "out")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode != 0
    assert "cut off" in done.stderr
    whole = model / "2_Dense/model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(EngineError) as caught:
        compress_folder(model, tmp_path / "other")
    assert caught.value.code == "MODEL_UNUSABLE"


PEAK = """
import runpy, sys
from pathlib import Path
from workers.engine.compressed import compress_folder, verify_compressed
source, small, again = sys.argv[1:]
compress_folder(Path(source), Path(small))
sys.argv = ["unpack.py", small, again]
runpy.run_path(small + "/unpack.py", run_name="__main__")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of resident memory")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (32, 128):
        source, small, again = (tmp_path / f"{name}{megabytes}" for name in ("model", "small", "again"))
        source.mkdir()
        save_file({"a": sparse((megabytes << 8, 1 << 10), 0.5)}, source / "model.safetensors")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(source), str(small), str(again)],
            capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert contents(again) == contents(source)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 16
    assert max(peaks) < 120


def test_a_damaged_form_does_not_pass(model: Path, tmp_path: Path) -> None:
    compress_folder(model, tmp_path / "small")
    verify_compressed(model, tmp_path / "small", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    file = tmp_path / "small" / "model-00001-of-00002.bitmask.safetensors"
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    with pytest.raises(EngineError) as caught:
        verify_compressed(model, tmp_path / "small", tmp_path / "unpacked")
    assert caught.value.code == "VERIFICATION_FAILED"
