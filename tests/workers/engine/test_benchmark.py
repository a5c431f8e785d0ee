from pathlib import Path

import pytest
import torch

from service.specs import Benchmark
from tests.workers.engine.tiny import tiny_network
from workers.engine.benchmark import (
    MIN_REPETITIONS,
    WARM_UPS,
    Bench,
    benchmark,
    count_flops,
    interleave,
    latencies,
    peak_memory,
    size_of,
)
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES as KNOWN
from workers.engine.replica import replica
from workers.engine.tasks import TASKS

FAMILIES = ("bert", "distilbert", "roberta")


def make_bench(scratch: Path, **spec: object) -> Bench:
    settings = {"batch_sizes": [1, 3], "sequence_length": 16, "threads": 1} | spec
    return Bench(Benchmark.model_validate(settings), torch.device("cpu"), torch.float32, scratch, budget=0.0)


def test_both_sides_get_the_same_rows_and_the_pruned_one_costs_less(tmp_path: Path) -> None:
    before, after = tiny_network("bert"), tiny_network("bert", uneven=True)
    out = tmp_path / "out"
    for name in ("onnx", "onnx_int8"):
        EXPORTERS[name].export(after, out / "onnx", tmp_path, TASKS["text-classification"])
    threads = torch.get_num_threads()
    sides = benchmark(
        before,
        after,
        TASKS["text-classification"],
        exports=["onnx_int8", "huggingface_custom", "onnx"],
        out=out,
        source=tmp_path,
        bench=make_bench(tmp_path / "scratch"),
    )
    assert torch.get_num_threads() == threads
    rows = [[(r["runtime"], r["batch_size"], r["sequence_length"]) for r in side["latency"]] for side in sides]
    runtimes = ("torch", "onnxruntime", "onnxruntime_int8")
    assert rows[0] == rows[1] == [(runtime, batch, 16) for runtime in runtimes for batch in (1, 3)]
    assert all(0 < row["p50"] <= row["p95"] for side in sides for row in side["latency"])
    assert sides[1]["flops"] < sides[0]["flops"]
    assert sides[1]["size"] < sides[0]["size"]
    assert all(side["peak_memory"] > 0 for side in sides)


def test_without_onnx_exports_only_torch_is_measured(tmp_path: Path) -> None:
    networks = [tiny_network("distilbert"), tiny_network("distilbert", uneven=True)]
    pairs = latencies(networks, {}, tmp_path, make_bench(tmp_path))
    assert [(before["runtime"], after["batch_size"]) for before, after in pairs] == [("torch", 1), ("torch", 3)]


def test_runs_alternate_and_swap_who_goes_first() -> None:
    order: list[str] = []

    def runner(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    first, second = interleave((lambda: runner("before", 2.0), lambda: runner("after", 1.0)), budget=0.0)
    assert (first, second) == ({"p50": 2.0, "p95": 2.0}, {"p50": 1.0, "p95": 1.0})
    timed = order[2 * WARM_UPS :]
    assert timed == ["before", "after", "after", "before"] * (MIN_REPETITIONS // 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("uneven", [False, True])
def test_flops_are_those_of_the_matrix_products(family: str, uneven: bool) -> None:
    heads, widths = ([3, 1], [20, 33]) if uneven else ([4, 4], [48, 48])
    length, hidden = 10, 32
    expected = 0
    for kept, width in zip(heads, widths, strict=True):
        inner = kept * 8
        expected += 4 * 2 * length * hidden * inner  # query, key, value and output
        expected += 2 * 2 * length * length * inner  # scores, and their product with the values
        expected += 2 * 2 * length * hidden * width  # both halves of the feed-forward part
    expected += 2 * hidden * hidden + 2 * hidden * 3  # pooler or first layer of the head, and the classifier
    assert count_flops(tiny_network(family, uneven=uneven), length) == expected


@pytest.mark.parametrize("uneven", [False, True])
def test_flops_of_a_decoder_count_gates_shared_heads_and_words(uneven: bool) -> None:
    shared, widths = ([2, 1], [20, 33]) if uneven else ([2, 2], [48, 48])
    length, hidden = 10, 32
    expected = 2 * length * hidden * 120  # the logits of every token
    for kept, width in zip(shared, widths, strict=True):
        inner = 2 * kept * 8
        expected += 2 * 2 * length * hidden * inner  # query and output
        expected += 2 * 2 * length * hidden * kept * 8  # key and value
        expected += 2 * 2 * length * length * inner  # scores, and their product with the values
        expected += 3 * 2 * length * hidden * width  # gate, up and down
    assert count_flops(tiny_network("llama", uneven=uneven), length) == expected


@pytest.mark.parametrize("family", KNOWN)
def test_every_family_is_smaller_and_cheaper_when_cut(family: str) -> None:
    whole, pruned = tiny_network(family), tiny_network(family, uneven=True)
    assert 0 < count_flops(pruned, 16) < count_flops(whole, 16)
    assert size_of(pruned) < size_of(whole)


@pytest.mark.parametrize("family", ["deberta-v2", "marian", "t5", "gpt2", "qwen3"])
def test_memory_of_families_that_are_built_in_other_ways_can_be_measured(family: str, tmp_path: Path) -> None:
    network = tiny_network(family, uneven=True, vocabulary=100_000)
    assert peak_memory(network, make_bench(tmp_path, batch_sizes=[1])) > size_of(network) * 0.9


def test_size_counts_the_bytes_of_the_dtype() -> None:
    network = tiny_network("roberta")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert size_of(network) == 4 * parameters
    assert size_of(replica(network, dtype=torch.bfloat16)) == 2 * parameters


def test_peak_memory_holds_the_weights_and_grows_with_the_batch(tmp_path: Path) -> None:
    network = tiny_network("bert", uneven=True, vocabulary=200_000)
    small = peak_memory(network, make_bench(tmp_path, batch_sizes=[1]))
    large = peak_memory(network, make_bench(tmp_path, batch_sizes=[1, 1024], sequence_length=40))
    assert size_of(network) * 0.9 < small < size_of(network) * 2
    assert large > small + 1024 * 40 * 32 * 4
