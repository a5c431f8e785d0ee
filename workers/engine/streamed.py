"""Jobs that cut single weights by magnitude and read no data: from file to file, without ever building the network.

Memory stays the same whatever the model's size, and a family that is not known here can be pruned too. What comes out
is compared with what went in tensor by tensor, because no network is there to be run. Nothing here imports PyTorch.
"""

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from service.specs import Cut, JobSpec, Magnitude
from workers.engine.card import write_cards
from workers.engine.compressed import compress_folder, verify_compressed
from workers.engine.reporter import Reporter
from workers.engine.reporting import Record, write_report
from workers.engine.results import engine_facts, result_of
from workers.engine.streaming import Report, count_zeros, prune_shards, verify_shards
from workers.engine.streaming.shards import read_shards

LIBRARIES = ("numpy",)
INPUTS_FIRST = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Values of `model_type` whose matrices are stored as (inputs, outputs)."""

IN_A_LAYER = re.compile(r"(^|\.)\d+\..*\.weight$")
NO_PROJECTION = re.compile(r"embed|bias|norm|(^|\.)(router|gate)\.")
"""Tables, and what sends tokens to experts: cutting those saves nothing and costs much."""

PRUNED, VERIFIED, COMPRESSED = 0.6, 0.8, 0.95
"""Share of a job's progress that is reached by the end of each part."""


def is_streamed(spec: JobSpec, model: dict[str, Any]) -> bool:
    """Whether the order can be carried out on the files alone; `model` is what the service knows of the upload."""
    form = "huggingface" if model["facts"]["uniform"] else "huggingface_custom"
    return (
        not spec.needs_data
        and spec.dataset_id is None
        and spec.benchmark is None
        and spec.exports == [form]
        and all(cut.structure == "weights" and isinstance(cut.criterion, Magnitude) for cut in spec.pruning.cuts)
    )


def compress_files(folder: Path, spec: JobSpec, model: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Runs one job in `folder`; writes `out/` and returns the result, all of it JSON values.

    Raises EngineError NOT_FINITE, MODEL_UNUSABLE, VERIFICATION_FAILED.
    """
    reporter.phase("loading")
    source, out, directory = folder / "in" / "model", folder / "out", spec.exports[0]
    target = out / directory
    before = measure_files(source, model)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".safetensors.index.json"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target / path.name)
    cuts = _prune(source, target, folder / "scratch", spec, model, reporter)
    reporter.phase("exporting")
    compressed = compress_folder(target, out / "compressed")
    reporter.reach(COMPRESSED)
    reporter.phase("verifying")
    verify_compressed(target, out / "compressed", folder / "scratch" / "unpacked")
    after = measure_files(target, model) | {"compressed_size": compressed}
    reporter.phase(None)
    made = model | {"directory": directory}
    outcome = result_of(spec, made, before, after, engine_facts(reporter, *LIBRARIES))
    record = Record(spec.model_dump(mode="json"), outcome, {}, cuts, {}, reporter.warnings, VERIFICATION)
    write_cards(record, out)
    write_report(record, out)
    return outcome


VERIFICATION = (
    "Every tensor that was not cut is the same byte for byte, every other weight is the same or zero; the compressed "
    "form was unpacked and is the same as the model."
)


def _prune(
    source: Path, target: Path, scratch: Path, spec: JobSpec, model: dict[str, Any], reporter: Reporter
) -> list[dict[str, Any]]:
    """Makes the cuts in their order, each from the files that the last one left; only the last goes to `target`."""
    done, cuts = [], spec.pruning.cuts
    for number, cut in enumerate(cuts):
        reporter.phase("pruning")
        into = target if number == len(cuts) - 1 else scratch / f"cut-{number}"
        report = _cut(source, into, cut, model, partial(_advance, reporter, number, len(cuts)))
        done.append({"round": 1} | reporter.cut(cut.structure, cut.kind, report.zeros, report.weights))
        reporter.phase("verifying")
        verify_shards(source, into, report)
        if number:
            shutil.rmtree(source)
        source = into
    reporter.reach(VERIFIED)
    return done


def _advance(reporter: Reporter, cut: int, cuts: int, share: float) -> None:
    reporter.reach(PRUNED * (cut + share) / cuts)


def _cut(source: Path, target: Path, cut: Cut, model: dict[str, Any], progress: Callable[[float], None]) -> Report:
    return prune_shards(
        source,
        target,
        share=cut.share,
        pattern=cut.pattern or "unstructured",
        scope=cut.scope,
        block=cut.block_size,
        inputs_first=model["family"] in INPUTS_FIRST,
        prunable=lambda name, _shape: is_projection(name, cut.stack),
        progress=progress,
    )


def is_projection(name: str, stack: str | None = None) -> bool:
    """Whether a matrix by its name belongs to the repeated layers of a network, or of one stack of it.

    Embeddings, norms, position tables and heads are left alone, as they are where the network is known.
    """
    return (
        IN_A_LAYER.search(name) is not None
        and NO_PROJECTION.search(name.lower()) is None
        and (stack is None or stack in name.split("."))
    )


def measure_files(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """One side of the result; what takes a running network is empty."""
    tensors = [tensor for shard in read_shards(folder) for tensor in shard.tensors]
    return {
        "metrics": {},
        "parameters": model["parameters"],
        "nonzero_parameters": max(0, model["parameters"] - count_zeros(tensors)),
        "size": sum(tensor.end - tensor.start for tensor in tensors),
        "flops": None,
        "peak_memory": None,
        "latency": [],
        "structure": model["structure"],
    }
