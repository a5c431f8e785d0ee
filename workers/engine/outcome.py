"""What a job leaves: figures, exports and the result."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from service.catalog import has_tokenizer
from workers.engine.benchmark import Bench, benchmark, static_costs
from workers.engine.compressed import compress_folder, verify_compressed
from workers.engine.evaluation import intervals, parameter_counts
from workers.engine.exporters import EXPORTERS
from workers.engine.families import family_of
from workers.engine.families.loading import labels_of, stock_class
from workers.engine.families.sizes import is_stock, structure_of
from workers.engine.reporter import Reporter
from workers.engine.results import engine_facts, result_of
from workers.engine.tasks import TASKS, Task
from workers.engine.tasks.text_classification import MULTI
from workers.engine.work import Work, device_facts

LIBRARIES = ("torch", "transformers", "safetensors", "onnx", "onnxruntime")
BENCHMARK_LENGTH = 128


def evaluate(network: PreTrainedModel, task: Task | None, seed: int, reporter: Reporter) -> dict[str, Any]:
    """Quality on `test` with intervals, empty without data; parameters and structure."""
    metrics = {}
    if task is not None and task.rows("test"):
        metrics = intervals(task.evaluate(network, "test"), seed)
        reporter.advance(task.rows("test"))
    return {"metrics": metrics, **parameter_counts(network), "structure": structure_of(network)}


def export(network: PreTrainedModel, work: Work, source: Path) -> list[tuple[str, Path]]:
    """Writes every export asked for; returns names of EXPORTERS with folders, the one that is the result first.

    Where no Hugging Face form was asked for, one goes to `network/`, so that the result can be pruned again.
    """
    written: dict[str, Path] = {name: work.out / e.folder for name, e in EXPORTERS.items() if name in work.spec.exports}
    if not written.keys() & {"huggingface", "huggingface_custom"}:
        form = "huggingface" if is_stock(network) else "huggingface_custom"
        written = {form: work.out / "network", **written}
    for name, folder in written.items():
        EXPORTERS[name].export(network, folder, source, TASKS[work.spec.task])
    return list(written.items())


def pack(network: Path, work: Work) -> dict[str, int]:
    """Writes `compressed/` where weights were set to zero; its bytes as `compressed_size`. Raises EngineError."""
    if not work.spec.pruning.zeroes_weights:
        return {}
    size = compress_folder(network, work.out / "compressed")
    verify_compressed(network, work.out / "compressed", work.scratch / "unpacked")
    return {"compressed_size": size}


def measure(before: PreTrainedModel, after: PreTrainedModel, work: Work) -> list[dict[str, Any]]:
    """Size, FLOPs, memory and latency of both; the last two only where a benchmark was asked for."""
    spec = work.spec
    if spec.benchmark is None:
        length = min(BENCHMARK_LENGTH, family_of(after).longest(after))
        return [static_costs(side, length) | {"peak_memory": None, "latency": []} for side in (before, after)]
    bench = Bench(spec.benchmark, work.device, work.inference_dtype, work.scratch)
    task = TASKS[spec.task]
    return list(benchmark(before, after, task, exports=spec.exports, out=work.out, source=work.model, bench=bench))


def result(
    network: PreTrainedModel, sides: list[dict[str, Any]], work: Work, directory: str, reporter: Reporter
) -> dict[str, Any]:
    """The whole result, all of it JSON values."""
    before, after = sides
    made = {
        "directory": directory,
        "family": network.config.model_type,
        "architecture": stock_class(network),
        "task": work.spec.task,
        "parameters": after["parameters"],
        "dtype": str(network.dtype).removeprefix("torch."),
        "structure": after["structure"],
        "facts": {
            "labels": labels_of(network) if "classification" in work.spec.task else None,
            "multi_label": network.config.problem_type == MULTI,
            "max_length": family_of(network).longest(network),
            "has_head": True,
            "has_tokenizer": has_tokenizer([path.name for path in work.model.iterdir()]),
            "uniform": is_stock(network),
        },
    }
    return result_of(work.spec, made, before, after, facts_of_engine(work.device, reporter))


def facts_of_engine(device: torch.device, reporter: Reporter) -> dict[str, Any]:
    """What the job ran on and how long its phases took."""
    return engine_facts(reporter, *LIBRARIES) | device_facts(device)
