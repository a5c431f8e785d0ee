"""Every export is loaded again in a fresh process and must give the pruned network's outputs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.replica import replica
from workers.engine.tasks.task import Task

SCRIPT = Path(__file__).with_name("verify.py")
SHAPES = ((3, 11), (16, 48))
"""Batch size and sequence length of the reference inputs; an export frozen to one shape fails on the other."""


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact's outputs may be from the network's: `max_error` is relative, see `verify.relative_error`."""

    max_error: float
    min_agreement: float


EXACT = Tolerance(1e-4, 1.0)
"""Same weights in fp32: only the order of additions differs, seen at 1e-7 to 1e-6."""

QUANTIZED = Tolerance(0.3, 0.9)
"""Dynamic int8 rounds every weight and activation to 8 bits: 0.03 to 0.1 was seen on MiniLM (trained, pruned) and on
random encoders of 12 and 24 layers; the bound is three times the worst. A foreign network is at 1 and more, a damaged
one rarely keeps its clear predictions."""

TOLERANCES = {name: QUANTIZED if name == "onnx_int8" else EXACT for name in EXPORTERS}


def verify(
    network: PreTrainedModel,
    artifacts: Sequence[tuple[str, Path]],
    task: type[Task],
    *,
    scratch: Path,
    threads: int = 1,
    seed: int = 0,
    timeout: float = 1800.0,
) -> list[dict[str, Any]]:
    """Compares what was exported with `network`, everything in one fresh process without our code.

    `artifacts` are pairs of a name in EXPORTERS, the form, and the folder it was written to. Returns per artifact
    `{"name", "failure": None, "error", "agreement"}`. Raises EngineError VERIFICATION_FAILED naming the artifact that
    fails, NOT_FINITE where the network itself is broken. `timeout` is in seconds.
    """
    work = scratch / "verification"
    work.mkdir(parents=True, exist_ok=True)
    answer = run_comparisons([comparison(network, artifacts, task, work, seed)], work, threads, timeout)
    for report in answer:
        if report["failure"]:
            raise EngineError("VERIFICATION_FAILED", f"the export {report['name']} failed: {report['failure']}")
    return answer


def comparison(
    network: PreTrainedModel, artifacts: Sequence[tuple[str, Path]], task: type[Task], folder: Path, seed: int
) -> dict[str, Any]:
    """What the fresh process needs to compare `artifacts` with `network`; references are saved in `folder`.

    Raises EngineError NOT_FINITE.
    """
    return {
        "references": _save_references(network, task, folder, seed),
        "outputs": list(task.outputs),
        "auto": task.auto,
        "artifacts": [_artifact(name, path) for name, path in artifacts],
    }


def run_comparisons(
    comparisons: list[dict[str, Any]], folder: Path, threads: int, timeout: float
) -> list[dict[str, Any]]:
    """Reports on the artifacts of all comparisons, in order, from one fresh process. Raises as `run_script` does."""
    request = {"comparisons": comparisons, "threads": threads, "answer": str(folder / "answer.json")}
    return list(run_script(SCRIPT, request, folder, timeout))


def reference_inputs(network: PreTrainedModel, seed: int) -> list[dict[str, Tensor]]:
    """Random token ids in every shape of SHAPES, each second row padded to half its length."""
    generator = torch.Generator().manual_seed(seed)
    family = family_of(network)
    batches = []
    for rows, length in SHAPES:
        shape = (rows, min(length, family.longest(network) - 1))
        mask = torch.ones(shape, dtype=torch.long)
        mask[1::2, (shape[1] + 1) // 2 :] = 0
        inputs = random_inputs(network, shape, generator)
        inputs["input_ids"][mask == 0] = network.config.pad_token_id or 0
        batches.append(inputs | {"attention_mask": mask})
    return batches


def random_inputs(network: PreTrainedModel, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Random tokens of (rows, tokens) without padding, and all else that the network takes."""
    padding, vocabulary = network.config.pad_token_id or 0, int(network.config.vocab_size)
    inputs = {"attention_mask": torch.ones(shape, dtype=torch.long)}
    for name in family_of(network).example(network):
        if name.endswith("input_ids"):
            ids = torch.randint(0, vocabulary, shape, generator=generator)
            ids[ids == padding] = (padding + 1) % vocabulary
            inputs[name] = ids
        elif name != "attention_mask":
            inputs[name] = torch.zeros(shape, dtype=torch.long)
    return inputs


def _save_references(network: PreTrainedModel, task: type[Task], folder: Path, seed: int) -> list[str]:
    network = replica(network, dtype=torch.float32)
    files = []
    for number, inputs in enumerate(reference_inputs(network, seed)):
        with torch.inference_mode():
            found = network(**inputs)
        outputs = {name: found[name].contiguous() for name in task.outputs}
        if not all(bool(output.isfinite().all()) for output in outputs.values()):
            raise EngineError("NOT_FINITE", "the pruned network's outputs are not finite; lower the learning rate")
        file = folder / f"{number}.safetensors"
        save_file(inputs | outputs, file)
        files.append(str(file))
    return files


def _artifact(name: str, folder: Path) -> dict[str, Any]:
    exporter, tolerance = EXPORTERS[name], TOLERANCES[name]
    return {
        "name": name,
        "loader": exporter.loader,
        "path": str(folder / exporter.file),
        "max_error": tolerance.max_error,
        "min_agreement": tolerance.min_agreement,
    }


def run_script(script: Path, request: dict[str, Any], folder: Path, timeout: float) -> Any:
    """Runs one of our stand-alone scripts in a fresh isolated interpreter and returns the JSON that it answers.

    `request["answer"]` is where the script writes. Raises EngineError VERIFICATION_FAILED when it dies or is too slow.
    """
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    try:
        subprocess.run([sys.executable, "-I", script, path], env=environment, check=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise EngineError("VERIFICATION_FAILED", "loading the exports again took too long", retryable=True) from None
    except subprocess.CalledProcessError:
        raise EngineError("VERIFICATION_FAILED", "the process that loads the exports again died") from None
    return json.loads(Path(request["answer"]).read_text())
