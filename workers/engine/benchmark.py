"""What the original and the pruned network cost: size, FLOPs, memory, and latency measured interleaved in one run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from service.specs import Benchmark
from workers.engine import modeling_secateur
from workers.engine.exporters import EXPORTERS
from workers.engine.families import family_of
from workers.engine.families.loading import stock_class
from workers.engine.modeling_secateur import differences, stock_twin
from workers.engine.replica import replica
from workers.engine.tasks.task import Task
from workers.engine.verification import random_inputs, run_script

ONNX_RUNTIMES = {"onnxruntime": "onnx", "onnxruntime_int8": "onnx_int8"}
"""ONNX runtimes, each with the export that it runs."""

WARM_UPS = 3
MIN_REPETITIONS = 10
MAX_REPETITIONS = 400

Run: TypeAlias = Callable[[], float]
"""Runs one batch; returns its seconds."""
Pair: TypeAlias = tuple[Run, Run]
"""The original's run and the pruned network's."""


@dataclass(frozen=True)
class Bench:
    """Where and how to measure. `budget` is the time in seconds that all latencies may take together."""

    spec: Benchmark
    device: torch.device
    dtype: torch.dtype
    scratch: Path
    budget: float = 60.0


def benchmark(
    before: PreTrainedModel,
    after: PreTrainedModel,
    task: type[Task],
    *,
    exports: Sequence[str],
    out: Path,
    source: Path,
    bench: Bench,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures both networks; returns for each `{"size", "flops", "peak_memory", "latency": […]}`.

    ONNX Runtime is measured for those of `exports` that it runs: the pruned network's file lies below `out`, the
    original's is made in `bench.scratch`. PyTorch runs on `bench.device` in `bench.dtype`, ONNX Runtime on the CPU.
    Sizes in bytes, FLOPs of one sequence, memory in bytes at the largest batch, latencies in seconds per batch.
    """
    sides = (before, after)
    costs = [static_costs(network, bench.spec.sequence_length) for network in sides]
    originals = _export_originals(before, task, exports, source, bench.scratch / "original")
    threads = torch.get_num_threads()
    torch.set_num_threads(bench.spec.threads)
    try:
        copies = [replica(network) for network in sides]
        peaks = [peak_memory(network, bench) for network in copies]
        rows = latencies(copies, originals, out, bench)
    finally:
        torch.set_num_threads(threads)
    return tuple(  # type: ignore[return-value]
        cost | {"peak_memory": peak, "latency": [row[side] for row in rows]}
        for side, (cost, peak) in enumerate(zip(costs, peaks, strict=True))
    )


def static_costs(network: PreTrainedModel, sequence_length: int) -> dict[str, Any]:
    """`size` and `flops` of a network; nothing is timed, so data-free jobs can afford it."""
    return {"size": size_of(network), "flops": count_flops(network, sequence_length)}


def size_of(network: PreTrainedModel) -> int:
    """Bytes of the weights as saved; tied ones count once."""
    tensors = {tensor.data_ptr(): tensor for tensor in network.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count_flops(network: PreTrainedModel, sequence_length: int) -> int:
    """FLOPs of all matrix products for one sequence (a multiply-add is two), counted as they run."""
    shadow = replica(network)
    # The counter cannot follow a parameter that is handed to a module as its input, unless it is frozen.
    shadow.requires_grad_(False)
    shadow.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        shadow(**inputs_of(network, 1, sequence_length))
    return int(counter.get_total_flops())


def inputs_of(network: PreTrainedModel, batch_size: int, sequence_length: int) -> dict[str, Tensor]:
    """One full batch of random tokens without padding, so that every position costs the same; so for a decoder."""
    return random_inputs(network, (batch_size, sequence_length), torch.Generator().manual_seed(0))


def peak_memory(network: PreTrainedModel, bench: Bench) -> int:
    """Bytes that inference holds at most at the largest batch: weights and activations.

    On a GPU PyTorch's allocator says so; on the CPU it is the resident memory of a fresh process, so that nothing
    else of the job is counted.
    """
    batch_size = max(bench.spec.batch_sizes)
    if bench.device.type == "cuda":
        return _peak_memory_cuda(network, batch_size, bench)
    bench.scratch.mkdir(parents=True, exist_ok=True)
    request = {
        "modeling": modeling_secateur.__file__,
        "stock": stock_class(network),
        "config": network.config.to_dict(),
        "sizes": differences(network, stock_twin(network)),
        "inputs": list(family_of(network).example(network)),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "sequence_length": bench.spec.sequence_length,
        "threads": bench.spec.threads,
        "answer": str(bench.scratch / "memory.json"),
    }
    return int(run_script(Path(__file__).with_name("memory.py"), request, bench.scratch, timeout=600))


def _peak_memory_cuda(network: PreTrainedModel, batch_size: int, bench: Bench) -> int:
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(bench.device)
    twin = replica(network, bench.device, bench.dtype)
    torch.cuda.reset_peak_memory_stats(bench.device)
    inputs = inputs_of(network, batch_size, bench.spec.sequence_length)
    with torch.inference_mode():
        twin(**{name: value.to(bench.device) for name, value in inputs.items()})
    torch.cuda.synchronize(bench.device)
    return torch.cuda.max_memory_allocated(bench.device) - held


def _export_originals(
    before: PreTrainedModel, task: type[Task], exports: Sequence[str], source: Path, folder: Path
) -> dict[str, Path]:
    files = {}
    for runtime, name in ONNX_RUNTIMES.items():
        if name in exports:
            EXPORTERS[name].export(before, folder, source, task)
            files[runtime] = folder / EXPORTERS[name].file
    return files


def latencies(
    networks: list[PreTrainedModel], originals: dict[str, Path], out: Path, bench: Bench
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of rows, before and after, per runtime and batch size; `originals` are the first network's ONNX files."""
    share = bench.budget / (len(bench.spec.batch_sizes) * (1 + len(originals)))
    rows = []
    for runtime in ("torch", *originals):
        if runtime == "torch":
            runners = [_torch_runner(network, bench) for network in networks]
        else:
            exporter = EXPORTERS[ONNX_RUNTIMES[runtime]]
            files = (originals[runtime], out / exporter.folder / exporter.file)
            runners = [_onnx_runner(file, bench.spec.threads) for file in files]
        for batch_size in bench.spec.batch_sizes:
            batches = [inputs_of(network, batch_size, bench.spec.sequence_length) for network in networks]
            pair = runners[0](batches[0]), runners[1](batches[1])
            label = {"runtime": runtime, "batch_size": batch_size, "sequence_length": bench.spec.sequence_length}
            first, second = interleave(pair, share)
            rows.append((label | first, label | second))
    return rows


def interleave(pair: Pair, budget: float) -> tuple[dict[str, float], dict[str, float]]:
    """Times both runs in turn, so that whatever slows the machine slows both, for about `budget` seconds.

    Every second repetition starts with the other side. Returns p50 and p95 of each in seconds.
    """
    for _ in range(WARM_UPS):
        for run in pair:
            run()
    seconds: tuple[list[float], list[float]] = ([], [])
    deadline = time.monotonic() + budget
    while len(seconds[0]) < MIN_REPETITIONS or (time.monotonic() < deadline and len(seconds[0]) < MAX_REPETITIONS):
        for side in (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0):
            seconds[side].append(pair[side]())
    return _percentiles(seconds[0]), _percentiles(seconds[1])


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50": float(p50), "p95": float(p95)}


def _torch_runner(network: PreTrainedModel, bench: Bench) -> Callable[[dict[str, Tensor]], Run]:
    twin = replica(network, bench.device, bench.dtype)

    def bind(batch: dict[str, Tensor]) -> Run:
        inputs = {name: value.to(bench.device) for name, value in batch.items()}

        @torch.inference_mode()
        def on_cpu() -> float:
            start = time.perf_counter()
            twin(**inputs)
            return time.perf_counter() - start

        @torch.inference_mode()
        def on_cuda() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(bench.device)
            start.record()
            twin(**inputs)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000

        return on_cuda if bench.device.type == "cuda" else on_cpu

    return bind


def _onnx_runner(file: Path, threads: int) -> Callable[[dict[str, Tensor]], Run]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def bind(batch: dict[str, Tensor]) -> Run:
        inputs = {name: value.numpy() for name, value in batch.items()}

        def run() -> float:
            start = time.perf_counter()
            session.run(None, inputs)
            return time.perf_counter() - start

        return run

    return bind
