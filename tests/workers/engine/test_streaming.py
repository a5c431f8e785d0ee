"""Pruning of weight files against a full sort: every type, pattern and scope, ties, odd shapes, and the memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from service.specs.rounding import nearest
from workers.engine.failures import EngineError
from workers.engine.streaming import Report, patterns, prune_shards, ranking, shards, verify_shards
from workers.engine.streaming.ranking import find_threshold

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
scopes = pytest.mark.parametrize("scope", ["uniform", "global"])
SHAPES = {"a": (7, 13), "b": (1, 5), "c": (31, 3), "d": (24, 32)}
Weights = dict[str, torch.Tensor]


def weights(dtype: torch.dtype, *, ties: bool = False, seed: int = 0) -> Weights:
    """Matrices of SHAPES among tensors that are never cut; with `ties` of few whole numbers, -0.0 among them."""
    chance = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=chance, dtype=torch.float64) for name, shape in SHAPES.items()}
    if ties:
        made = {name: (2 * values).round() for name, values in made.items()}
    return {name: values.to(dtype) for name, values in made.items()} | {
        "bias": torch.randn(13, generator=chance),
        "ids": torch.arange(6).view(2, 3),
        "kernel": torch.randn(2, 3, 4, generator=chance).to(dtype),
        "embedding": torch.randn(9, 4, generator=chance).to(dtype),
    }


def save(folder: Path, *files: Weights) -> Path:
    """A model's folder: one weight file, or shards with their index."""
    folder.mkdir()
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", {"format": "pt", "made": "here"})
        return folder
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": {}}
    for number, tensors in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def not_embedding(name: str, shape: tuple[int, ...]) -> bool:
    """All matrices but one."""
    return name != "embedding"


def prune(
    source: Path, share: float = 0.5, pattern: Any = "unstructured", scope: Any = "global", **more: Any
) -> Weights:
    """Prunes to the folder `pruned` beside the source and verifies; all tensors, with the report as `report`."""
    target = source.with_name("pruned")
    options: dict[str, Any] = {"block": 4, "prunable": not_embedding, "progress": lambda share: None}
    report = prune_shards(source, target, share=share, pattern=pattern, scope=scope, **options | more)
    verify_shards(source, target, report)
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    return read(target)


def read(folder: Path) -> Weights:
    """All tensors of a folder, file by file."""
    return {name: values for path in sorted(folder.glob("*.safetensors")) for name, values in load_file(path).items()}


def bits(tensor: torch.Tensor) -> bytes:
    """The very bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def kept_by_sorting(matrices: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Which weights a full sort keeps: by magnitude, of equals the first."""
    magnitudes = torch.cat([matrix.flatten().double().abs() for matrix in matrices])
    order = (-magnitudes).sort(stable=True).indices
    keep = torch.zeros(len(magnitudes), dtype=torch.bool)
    keep[order[: len(order) - nearest(len(order) * share)]] = True
    flat = keep.split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape) for part, matrix in zip(flat, matrices, strict=True)]


def expected(source: Path, names: Iterable[str], share: float, scope: str) -> Weights:
    """What sorting makes of the model, in the order of the bytes in its files."""
    tensors = read(source)
    order = [t.name for shard in shards.read_shards(source) for t in shard.tensors if t.name in set(names)]
    groups = [order] if scope == "global" else [[name] for name in order]
    for group in groups:
        for name, keep in zip(group, kept_by_sorting([tensors[name] for name in group], share), strict=True):
            tensors[name] = tensors[name].where(keep | (tensors[name] == 0), torch.zeros((), dtype=tensors[name].dtype))
    return tensors


def assert_same(found: Weights, wanted: Weights) -> None:
    """Names, shapes, types and numbers; all but the sign of a zero bit for bit."""
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in wanted.items()}
    for name, tensor in found.items():
        assert bits(tensor + 0) == bits(wanted[name] + 0), name


@dtypes
@scopes
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("share", [0.0, 0.013, 0.3, 0.5, 0.77, 1.0])
def test_as_many_as_asked_are_cut_and_exactly_those_a_full_sort_cuts(
    dtype: torch.dtype, scope: str, ties: bool, share: float, tmp_path: Path
) -> None:
    source = save(tmp_path / "model", weights(dtype, ties=ties))
    assert_same(prune(source, share, scope=scope), expected(source, SHAPES, share, scope))


@scopes
def test_shards_are_ranked_as_one_model_of_several_types(scope: str, tmp_path: Path) -> None:
    files = [weights(dtype, ties=number > 0, seed=number) for number, dtype in enumerate(DTYPES)]
    files = [{f"{number}.{name}": t for name, t in file.items()} for number, file in enumerate(files)]
    source = save(tmp_path / "model", *files)
    names = [f"{number}.{name}" for number in range(len(files)) for name in SHAPES]
    found = prune(source, 0.4, scope=scope, prunable=lambda name, shape: name[2:] in SHAPES)
    assert_same(found, expected(source, names, 0.4, scope))
    index = "model.safetensors.index.json"
    assert (tmp_path / "pruned" / index).read_bytes() == (source / index).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@scopes
def test_a_matrix_that_is_sampled_is_cut_exactly(dtype: torch.dtype, scope: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.linspace(0.1, 2, 1000).view(-1, 1)
    source = save(
        tmp_path / "model", {"a": (torch.randn(1000, 999) * rows).to(dtype), "b": torch.randn(300, 1000).to(dtype)}
    )
    assert_same(prune(source, 0.6, scope=scope), expected(source, ["a", "b"], 0.6, scope))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "block"])
def test_small_pieces_and_little_memory_change_nothing(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "model", weights(torch.float32, ties=True))
    whole = prune(source, pattern=pattern)
    for module, name, value in [(shards, "PIECE", 64), (shards, "WIDEST", 1), (ranking, "BINS", 4)]:
        monkeypatch.setattr(module, name, value)
    for module in (ranking, patterns):
        monkeypatch.setattr(module, "HELD", 8)
    pieces = prune(source, pattern=pattern)
    assert {name: bits(t) for name, t in pieces.items()} == {name: bits(t) for name, t in whole.items()}


@pytest.mark.parametrize("held", [1 << 18, 20])
@pytest.mark.parametrize("estimate", [None, (0, 5), (400, 401), (450, 600), (999, 1000)])
def test_thresholds_are_those_of_a_full_sort_whatever_the_estimate(
    held: int, estimate: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "HELD", held)
    monkeypatch.setattr(ranking, "BINS", 16)
    keys = np.random.default_rng(0).integers(0, 1000, 2000).astype(np.int32)
    for count in (0, 1, 2, 777, 1000, 1999, 2000):
        threshold = find_threshold(lambda: np.array_split(keys, 7), count, 1 << 30, estimate)
        kept = np.concatenate([threshold.keep(some) for some in np.array_split(keys, 7)])
        wanted = np.ones(len(keys), bool)
        wanted[np.lexsort((-np.arange(len(keys)), keys))[:count]] = False
        assert np.array_equal(kept, wanted)


@dtypes
@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_largest_of_neighbours_stay_in_every_row_and_at_its_end(
    dtype: torch.dtype, pattern: str, kept: int, group: int, ties: bool, tmp_path: Path
) -> None:
    source = save(tmp_path / "model", weights(dtype, ties=ties))
    wanted = read(source)
    for name in SHAPES:
        for row in wanted[name]:
            for some in row.split(group):
                some[some.abs().sort(stable=True, descending=True).indices[kept:]] = 0
    assert_same(prune(source, pattern=pattern), wanted)


@dtypes
@scopes
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_blocks_of_the_lowest_mean_are_cut(dtype: torch.dtype, scope: str, ties: bool, tmp_path: Path) -> None:
    source = save(tmp_path / "model", weights(dtype, ties=ties))
    wanted = read(source)
    order = [t.name for shard in shards.read_shards(source) for t in shard.tensors if t.name in SHAPES]
    blocks = {name: [block for strip in wanted[name].split(4) for block in strip.split(4, dim=1)] for name in order}
    for group in [order] if scope == "global" else [[name] for name in order]:
        means = torch.stack([block.double().abs().mean() for name in group for block in blocks[name]])
        (keep,) = kept_by_sorting([means], 0.3)
        for block, stays in zip([block for name in group for block in blocks[name]], keep.tolist(), strict=True):
            block.mul_(stays)
    assert_same(prune(source, 0.3, "block", scope), wanted)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "block"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@dtypes
def test_weights_that_have_no_rank_are_refused(pattern: Any, value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    broken = weights(dtype)
    broken["d"][23, 31] = value
    with pytest.raises(EngineError) as caught:
        prune(save(tmp_path / "model", broken), pattern=pattern)
    assert (caught.value.code, caught.value.blame) == ("NOT_FINITE", "user")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block"])
def test_where_nothing_may_be_cut_the_files_are_copied(pattern: Any, tmp_path: Path) -> None:
    source = save(tmp_path / "model", weights(torch.float16))
    prune(source, pattern=pattern, prunable=lambda name, shape: name == "bias")
    assert (tmp_path / "pruned/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_the_report_counts_and_progress_reaches_the_end(tmp_path: Path) -> None:
    told: list[float] = []
    source = save(tmp_path / "model", weights(torch.float32, ties=True))
    report = prune_shards(
        source, tmp_path / "out", share=0.75, pattern="unstructured", scope="uniform", block=1,
        prunable=lambda name, shape: name in ("a", "d"), progress=told.append,
    )  # fmt: skip
    assert (report.weights, report.tensors) == (7 * 13 + 24 * 32, {"a": 68, "d": 576})
    assert report.zeros == 68 + 576
    assert told == sorted(told)
    assert told[0] > 0
    assert told[-1] == 1.0


def test_weights_that_are_zero_already_count_as_cut(tmp_path: Path) -> None:
    matrix = torch.tensor([[0.0, 5.0, -0.0, 1.0], [2.0, 0.0, 3.0, 4.0]])
    found = prune(save(tmp_path / "model", {"a": matrix}), 0.5)["a"]
    assert found.tolist() == [[0, 5, 0, 0], [2, 0, 3, 4]]
    found = prune(save(tmp_path / "again", {"a": matrix}), 0.25)["a"]
    assert found.tolist() == matrix.tolist(), "three are zero, more than the two that were asked for"


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "model", weights(torch.float32))
    whole = (source / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (source / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(EngineError) as caught:
            prune(source)
        assert caught.value.code == "MODEL_UNUSABLE"


def _kept_weight(tensors: Weights) -> None:
    matrix = tensors["d"].flatten()
    matrix[matrix.nonzero()[0]] *= 1.0001


def _one_more_zero(tensors: Weights) -> None:
    matrix = tensors["d"].flatten()
    matrix[matrix.nonzero()[0]] = 0


def _other_tensor(tensors: Weights) -> None:
    tensors["embedding"][0, 0] += 1


def _other_shape(tensors: Weights) -> None:
    tensors["d"] = tensors["d"].view(32, 24)


def _missing(tensors: Weights) -> None:
    del tensors["bias"]


@pytest.mark.parametrize("damage", [_kept_weight, _one_more_zero, _other_tensor, _other_shape, _missing])
def test_verification_finds_what_is_wrong(damage: Any, tmp_path: Path) -> None:
    source = save(tmp_path / "model", weights(torch.float32))
    tensors = prune(source)
    report = prune_shards(
        source, tmp_path / "pruned", share=0.5, pattern="unstructured", scope="global", block=1,
        prunable=not_embedding, progress=lambda share: None,
    )  # fmt: skip
    damage(tensors)
    save_file(tensors, tmp_path / "pruned/model.safetensors", {"format": "pt", "made": "here"})
    with pytest.raises(EngineError) as caught:
        verify_shards(source, tmp_path / "pruned", report)
    assert caught.value.code == "VERIFICATION_FAILED"


def test_verification_believes_no_report(tmp_path: Path) -> None:
    source = save(tmp_path / "model", {"a": torch.ones(4, 4)})
    prune(source)
    for report in (
        Report(16, 9, {"a": 9}, 1.0),
        Report(16, 9, {"a": 8}, 1.0),
        Report(17, 8, {"a": 8}, 1.0),
        Report(16, 8, {"b": 8}, 1.0),
        Report(0, 0, {}, 1.0),
    ):
        with pytest.raises(EngineError):
            verify_shards(source, tmp_path / "pruned", report)


PRUNE = """
import sys
from pathlib import Path
from workers.engine.streaming import prune_shards, verify_shards
ways = {"unstructured": ("global", "uniform"), "2:4": ("uniform",), "block": ("global",)}
for pattern, scope in [(pattern, scope) for pattern in ways for scope in ways[pattern]]:
    report = prune_shards(Path(sys.argv[1]), Path(sys.argv[2]), share=0.5, pattern=pattern, scope=scope, block=16,
                          prunable=lambda name, shape: True, progress=lambda share: None)
    verify_shards(Path(sys.argv[1]), Path(sys.argv[2]), report)
assert "torch" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of resident memory")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (64, 256):
        matrix = torch.randn(megabytes << 8, 1 << 10)
        source = save(
            tmp_path / str(megabytes), {"a": matrix[: len(matrix) // 2], "b": matrix[len(matrix) // 2 :].clone()}
        )
        done = subprocess.run(
            [sys.executable, "-c", PRUNE, str(source), str(tmp_path / "out")],
            capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 16
    assert max(peaks) < 120
