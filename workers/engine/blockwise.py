"""Jobs that solve single weights of a causal language model and train nothing: one block of it in memory at a time.

Weights are cut in a copy of the files, block by block, and both sides are evaluated the same way, so that memory grows
with the widest block and the rows that are read, not with the number of blocks. All figures are those of a job that
holds the network; no other process loads the result, for what is evaluated is what was written.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from service.specs import JobSpec, OneShot
from workers.engine.card import write_cards
from workers.engine.compressed import compress_folder, verify_compressed
from workers.engine.evaluation import intervals
from workers.engine.families import family_in, family_of
from workers.engine.families.loading import load_skeleton
from workers.engine.layerwise.files import AUTO, FiledNetwork, prune_blocks_on_disk
from workers.engine.layerwise.methods import METHODS, method_of
from workers.engine.layerwise.perplexity import evaluate_on_disk
from workers.engine.recovery import TRAINING_COST
from workers.engine.reporter import STEPS_SHARE, Reporter
from workers.engine.reporting import Record, write_report
from workers.engine.results import engine_facts, result_of
from workers.engine.scoring import BATCH
from workers.engine.streamed import measure_files
from workers.engine.streaming import verify_shards
from workers.engine.tasks.causal_lm import CausalLM
from workers.engine.tasks.language_model import TOKENS_TOGETHER
from workers.engine.tasks.task import INPUTS, Batch
from workers.engine.work import Work, device_facts, prepare

FORM = "huggingface"
LIBRARIES = ("numpy", "torch", "transformers", "safetensors")
FLOPS_LENGTH = 128
"""Tokens of the sequence whose FLOPs are counted."""
VERIFICATION = (
    "The weights were evaluated as they lie in the files. Every tensor that was not cut is the same byte for byte; the "
    "compressed form was unpacked and is the same as the model."
)


def is_blockwise(spec: JobSpec) -> bool:
    """Whether the order can be carried out with one block in memory."""
    return (
        spec.task == "causal-lm"
        and spec.baseline is None
        and spec.finetuning is None
        and spec.pruning.target is None
        and isinstance(spec.pruning.schedule, OneShot)
        and spec.exports == [FORM]
        and spec.benchmark is None
        and all(cut.structure == "weights" and cut.kind in METHODS for cut in spec.pruning.cuts)
    )


def compress_blocks(
    folder: Path,
    spec: JobSpec,
    model: dict[str, Any],
    reporter: Reporter,
    max_threads: int | None,
    batch_divisor: int = 1,
) -> dict[str, Any]:
    """Runs one job in `folder`; writes `out/` and returns the result, all of it JSON values.

    `model` is what the service knows of the upload. Raises EngineError NOT_FINITE, MODEL_UNUSABLE, VERIFICATION_FAILED.
    """
    reporter.phase("loading")
    work, target = prepare(folder, spec, max_threads, batch_divisor), folder / "out" / FORM
    family_in(work.model)
    before = FiledNetwork(work.model, work.device)
    task = CausalLM(work.dataset, work.model, before.network, work.settings(before.network))
    for code, message in task.warnings:
        reporter.warning(code, message)
    reporter.total_steps = forward_passes(spec, task)
    shutil.copytree(work.model, target, copy_function=shutil.copyfile)
    after = FiledNetwork(target, work.device)
    cuts = _prune(after, task, work, reporter)
    reporter.phase("evaluating")
    flops = count_flops(work.model)
    dense, cut = (
        measure_files(path, model) | {"metrics": _evaluate(files, task, spec.seed, reporter), "flops": flops}
        for path, files in ((work.model, before), (target, after))
    )
    reporter.reach(STEPS_SHARE)
    cut["compressed_size"] = _pack(target, work, reporter)
    reporter.phase(None)
    made = model | {"directory": FORM, "task": spec.task, "facts": model["facts"] | {"has_head": True}}
    engine = engine_facts(reporter, *LIBRARIES) | device_facts(work.device)
    outcome = result_of(spec, made, dense, cut, engine)
    record = Record(spec.model_dump(mode="json"), outcome, {}, cuts, {}, reporter.warnings, VERIFICATION)
    write_cards(record, work.out)
    write_report(record, work.out)
    return outcome


def forward_passes(spec: JobSpec, task: CausalLM) -> int:
    """The work of solving and evaluation, in forward passes of single rows."""
    samples = sum(task.sample_size(getattr(cut.criterion, "samples", 0)) for cut in spec.pruning.cuts)
    return max(1, 2 * task.rows("test") + TRAINING_COST * samples)


def _prune(files: FiledNetwork, task: CausalLM, work: Work, reporter: Reporter) -> list[dict[str, Any]]:
    """Makes the cuts in their order, each in the files that the last one left."""
    done = []
    for cut in work.spec.pruning.cuts:
        reporter.phase("analyzing")
        rows = task.sample_size(getattr(cut.criterion, "samples", 0))
        batches = [_inputs(batch) for batch in task.sample(rows, BATCH)]
        tell = reporter.portion(TRAINING_COST * rows)
        report = prune_blocks_on_disk(files, batches, method_of(cut, cut.share), tell, bfloat16=work.bfloat16)
        done.append({"round": 1} | reporter.cut(cut.structure, cut.kind, report.zeros, report.weights))
    reporter.phase("verifying")
    verify_shards(work.model, work.out / FORM, report, refitted=True)
    return done


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name in INPUTS}


def _evaluate(files: FiledNetwork, task: CausalLM, seed: int, reporter: Reporter) -> dict[str, Any]:
    """Quality on `test` with intervals; empty where there are no rows."""
    if not task.rows("test"):
        return {}
    together = max(1, TOKENS_TOGETHER // task.settings.max_length // task.settings.divisor)
    return intervals(evaluate_on_disk(files, task.batches("test", together), reporter.advance), seed)


def count_flops(folder: Path) -> int:
    """FLOPs of all matrix products for one sequence of FLOPS_LENGTH tokens; only shapes are computed."""
    network = load_skeleton(folder, AUTO)
    network.to("meta")  # type: ignore[arg-type] # transformers wraps it without its types
    network.set_attn_implementation("eager")
    shape = (1, min(FLOPS_LENGTH, family_of(network).longest(network)))
    ids = torch.ones(shape, dtype=torch.long, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(input_ids=ids, attention_mask=ids, use_cache=False)
    return int(counter.get_total_flops())


def _pack(target: Path, work: Work, reporter: Reporter) -> int:
    """Writes the compressed form and checks it; returns its bytes."""
    reporter.phase("exporting")
    size = compress_folder(target, work.out / "compressed")
    reporter.phase("verifying")
    verify_compressed(target, work.out / "compressed", work.scratch / "unpacked")
    return size
