"""The whole job, top to bottom: load, baseline, prune and fine-tune in rounds, export, verify, measure, report."""

import json
import math
import os
import platform
import resource
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from service.specs import Gradual, JobSpec
from workers.engine.benchmark import Bench, benchmark, static_costs
from workers.engine.evaluation import intervals, parameter_counts
from workers.engine.exporters import EXPORTERS
from workers.engine.exporters.huggingface import stock_class
from workers.engine.failures import EngineError
from workers.engine.families import family_in, family_of, is_stock, labels_of, structure_of
from workers.engine.recovery import Course, train
from workers.engine.replica import replica
from workers.engine.reporter import Reporter
from workers.engine.reporting import Record, write_report
from workers.engine.surgery import Anatomy, apply_cut
from workers.engine.tasks import TASKS, Task
from workers.engine.tasks.text_classification import labels_in
from workers.engine.verdict import verdict
from workers.engine.verification import verify

LATER_STEPS = 0.35
"""Share of the progress that evaluation, export, verification and benchmark take after training."""
LIBRARIES = ("torch", "transformers", "safetensors", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Work:
    """The folders of one job and its order."""

    folder: Path
    spec: JobSpec
    device: torch.device
    bfloat16: bool

    @property
    def model(self) -> Path:
        """The model as uploaded."""
        return self.folder / "in" / "model"

    @property
    def dataset(self) -> Path:
        """The splits as JSONL; missing where the job needs none."""
        return self.folder / "in" / "dataset"

    @property
    def out(self) -> Path:
        """What is published."""
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        """What is not."""
        return self.folder / "scratch"


def compress(folder: Path, spec: JobSpec, reporter: Reporter, max_threads: int | None) -> dict[str, Any]:
    """Runs one job in `folder`; writes `out/` and returns the result, all of it JSON values."""
    reporter.phase("loading")
    work = _prepare(folder, spec, max_threads)
    network, task = _load(work, reporter)
    reporter.total_steps = _total_steps(spec, task)
    if spec.baseline is not None and task is not None:
        reporter.phase("finetuning")
        course = Course("baseline", spec.baseline, spec.baseline.epochs, spec.seed, work.bfloat16)
        train(network, task, course, reporter)
    before = replica(network, work.device)

    anatomy = Anatomy.of(network)
    cuts = prune(network, before, task, work, anatomy, reporter)

    reporter.phase("evaluating")
    sides = [_evaluate(side, task, spec.seed) for side in (before, network)]
    reporter.phase("exporting")
    directory = _export(network, work)
    reporter.phase("verifying")
    verify(network, _exported(work, directory), scratch=work.scratch, seed=spec.seed)
    reporter.phase("evaluating")
    sides = [side | costs for side, costs in zip(sides, _measure(before, network, work), strict=True)]
    reporter.phase(None)
    result = _result(network, sides, work, directory, reporter)
    record = Record(
        spec.model_dump(mode="json"), result, dict(reporter.curves), cuts, anatomy.kept_layers, reporter.warnings
    )
    write_report(record, work.out)
    return result


def prune(
    network: PreTrainedModel,
    before: PreTrainedModel,
    task: Task | None,
    work: Work,
    anatomy: Anatomy,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Cuts and fine-tunes in rounds, in place; returns what every cut of every round removed."""
    spec, step, done = work.spec, 0, []
    generator = torch.Generator().manual_seed(spec.seed)
    shares = round_shares(spec)
    for number, (share, epochs) in enumerate(zip(shares, round_epochs(spec, len(shares)), strict=True), start=1):
        reporter.phase("pruning")
        for cut in spec.pruning.cuts:
            removed = apply_cut(network, cut, cut.share * share, anatomy, task, generator)
            done.append({"round": number} | removed)
            text = f"Cut {removed['removed']} of {removed['of']} {cut.structure} by {cut.criterion.kind}."
            reporter.event("pruning.cut", text, **done[-1])
        if epochs and spec.finetuning is not None and task is not None:
            reporter.phase("finetuning")
            course = Course(
                "finetuning",
                spec.finetuning,
                epochs,
                spec.seed + number,
                work.bfloat16,
                sparse=any(cut.structure == "weights" for cut in spec.pruning.cuts),
                distillation=spec.finetuning.distillation,
                first_step=step,
            )
            step = train(network, task, course, reporter, before)
    return done


def round_shares(spec: JobSpec) -> list[float]:
    """How much of each cut is done after every round: `1 - (1 - t)³` (Zhu and Gupta, 2017) or `t`."""
    schedule = spec.pruning.schedule
    if not isinstance(schedule, Gradual):
        return [1.0]
    times = [number / schedule.rounds for number in range(1, schedule.rounds + 1)]
    return times if schedule.curve == "linear" else [1 - (1 - time) ** 3 for time in times]


def round_epochs(spec: JobSpec, rounds: int) -> list[int]:
    """Epochs after each round; what does not divide goes to the last ones, where most recovery is needed."""
    total = spec.finetuning.epochs if spec.finetuning else 0
    return [total // rounds + (number >= rounds - total % rounds) for number in range(rounds)]


def _prepare(folder: Path, spec: JobSpec, max_threads: int | None) -> Work:
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise EngineError("DEVICE_NOT_AVAILABLE", "this worker has no CUDA device; use auto or cpu", blame="user")
    device = torch.device("cuda" if cuda and spec.device != "cpu" else "cpu")
    bfloat16 = spec.precision == "bfloat16" or (spec.precision == "auto" and device.type == "cuda")
    torch.manual_seed(spec.seed)
    torch.set_num_threads(max(1, min(os.cpu_count() or 1, max_threads or 1 << 10)))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    (folder / "scratch").mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    return Work(folder, spec, device, bfloat16)


def _load(work: Work, reporter: Reporter) -> tuple[PreTrainedModel, Task | None]:
    spec, family = work.spec, family_in(work.model)
    has_data = work.dataset.is_dir() and any(work.dataset.glob("*.jsonl"))
    network = family.load(work.model, new_labels=_new_labels(work) if spec.baseline else None, seed=spec.seed)
    # Eager attention is about 1.5 times faster than sdpa on short sequences without a GPU.
    network.set_attn_implementation("eager" if work.device.type == "cpu" else "sdpa")
    network.to(work.device)  # type: ignore[arg-type]
    task = None
    if has_data:
        labels = labels_of(network)
        longest = spec.max_length or min(128, family.longest(network))
        task = TASKS[spec.task](work.dataset, work.model, labels, longest, spec.seed)
        for code, message in task.warnings:
            reporter.warning(code, message)
    return network, task


def _new_labels(work: Work) -> list[str] | None:
    """Labels of a fresh head; None where the uploaded head fits the data and is trained on."""
    config = json.loads((work.model / "config.json").read_text())
    found = labels_in(work.dataset)
    has_head = any("ForSequenceClassification" in name for name in config.get("architectures") or ())
    known = list((config.get("id2label") or {}).values()) or ["LABEL_0", "LABEL_1"]
    return None if has_head and set(found) <= set(known) else found


def _total_steps(spec: JobSpec, task: Task | None) -> int:
    rows = task.rows("train") if task else 0
    steps = sum(t.epochs * math.ceil(rows / t.batch_size) for t in (spec.baseline, spec.finetuning) if t)
    return max(1, int(steps / (1 - LATER_STEPS)))


def _evaluate(network: PreTrainedModel, task: Task | None, seed: int) -> dict[str, Any]:
    metrics = intervals(task.evaluate(network, "test"), seed) if task and task.rows("test") else {}
    return {"metrics": metrics, **parameter_counts(network), "structure": public_structure(network)}


def public_structure(network: PreTrainedModel) -> dict[str, Any]:
    """The structure as the API shows it."""
    return {key: value for key, value in structure_of(network).items() if key != "head_size"}


def _exported(work: Work, directory: str) -> list[tuple[str, Path]]:
    """What was written: names of the registry, in its order, and folders."""
    asked: list[str] = [name for name in EXPORTERS if name in work.spec.exports]
    written = [(name, work.out / EXPORTERS[name].folder) for name in asked]
    if directory == "network":
        ours = (work.out / directory / "modeling_secateur.py").exists()
        written.append(("huggingface_custom" if ours else "huggingface", work.out / directory))
    return written


def _export(network: PreTrainedModel, work: Work) -> str:
    """Writes every export asked for; returns the folder below `out` that holds the result as a model."""
    for name, exporter in EXPORTERS.items():
        if name in work.spec.exports:
            exporter.export(network, work.out / exporter.folder, work.model)
    for name in ("huggingface", "huggingface_custom"):
        if name in work.spec.exports:
            return name
    form = "huggingface" if is_stock(network) else "huggingface_custom"
    EXPORTERS[form].export(network, work.out / "network", work.model)
    return "network"


def _measure(before: PreTrainedModel, after: PreTrainedModel, work: Work) -> list[dict[str, Any]]:
    spec = work.spec
    if spec.benchmark is None:
        length = min(128, family_of(after).longest(after))
        return [static_costs(side, length) | {"peak_memory": None, "latency": []} for side in (before, after)]
    dtype = torch.bfloat16 if work.bfloat16 else torch.float32
    bench = Bench(spec.benchmark, work.device, dtype, work.scratch)
    return list(benchmark(before, after, exports=spec.exports, out=work.out, source=work.model, bench=bench))


def _result(
    network: PreTrainedModel, sides: list[dict[str, Any]], work: Work, directory: str, reporter: Reporter
) -> dict[str, Any]:
    before, after = sides
    goals = verdict(work.spec.acceptance, before, after)
    config = network.config
    return {
        "verdict": goals,
        "passed": all(goal["passed"] for goal in goals),
        "before": before,
        "after": after,
        "model": {
            "directory": directory,
            "family": config.model_type,
            "architecture": stock_class(network),
            "task": work.spec.task,
            "parameters": after["parameters"],
            "dtype": str(network.dtype).removeprefix("torch."),
            "structure": after["structure"],
            "facts": {
                "labels": labels_of(network),
                "max_length": family_of(network).longest(network),
                "has_head": True,
                "has_tokenizer": any(work.model.glob("tokenizer*")) or any(work.model.glob("vocab*")),
                "uniform": is_stock(network),
            },
        },
        "engine": {
            "device": torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu",
            "peak_memory": _peak_memory(work.device),
            "seconds": dict(reporter.seconds),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        },
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
