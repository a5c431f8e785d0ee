"""Jobs of real engine processes that are killed or told to stop, and go on elsewhere from what they left."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.specs import JobSpec
from tests.models import FILLER, GOOD, tiny_dataset, tiny_model, tiny_network
from tests.workers.engine.test_main import halve, order
from tests.workers.engine.tiny_tasks import tokenizer_in, write
from workers.engine.compress import compress
from workers.engine.journal import Terms
from workers.engine.reporter import Reporter

Line = dict[str, Any]
STOPPED = os.EX_TEMPFAIL
TAYLOR = {"kind": "taylor", "samples": 32}
QUICK: dict[str, Any] = {"benchmark": None, "device": "cpu", "max_length": 16, "dataset_id": "ds_" + "0" * 26}


@dataclass(frozen=True)
class Case:
    """A job: what makes its inputs, and the parts of its order."""

    inputs: Callable[[Path], object]
    parts: dict[str, Any]


def classifier(folder: Path, *, head: bool = True) -> None:
    """A tiny BERT and texts with labels."""
    tiny_model(folder / "model", head=head)
    tiny_dataset(folder / "dataset", train=64, validation=16, test=16)


def encoder(folder: Path) -> None:
    """The same without a head."""
    classifier(folder, head=False)


def halved_encoder(folder: Path) -> None:
    """The same, stored in 16 bits."""
    encoder(folder)
    halve(folder / "model" / "model.safetensors")


def translator(folder: Path) -> None:
    """A tiny Marian and sentences of a language that says everything backwards."""
    tiny_network("marian", "MarianMTModel").save_pretrained(folder / "model")
    tokenizer_in(folder / "model")
    chance = random.Random(0)
    sides = [chance.choices((*FILLER, *GOOD), k=chance.randrange(2, 9)) for _ in range(60)]
    rows = [{"source": " ".join(side), "target": " ".join(reversed(side))} for side in sides]
    write(folder / "dataset", train=rows[:40], validation=rows[40:50], test=rows[50:])


def cut(structure: str, ratio: float = 0.5, criterion: Any = TAYLOR, **more: Any) -> dict[str, Any]:
    """One cut of an order."""
    return {"structure": structure, "ratio": ratio, "criterion": criterion} | more


def training(epochs: int, **more: Any) -> dict[str, Any]:
    """A recipe of few rows at a time, so that there are batches to be stopped between."""
    return {"epochs": epochs, "learning_rate": 3e-3, "batch_size": 16} | more


GRADUAL = {"kind": "gradual", "rounds": 2}
MOMENTUM = {"kind": "sgd", "momentum": 0.9, "nesterov": True}
CASES = {
    "head, heads and neurons, distilled": Case(
        encoder,
        {
            "baseline": training(2),
            "pruning": {"cuts": [cut("attention_heads", scope="global"), cut("ffn_neurons")]},
            "finetuning": training(2, distillation={}),
            "exports": ["huggingface_custom"],
        },
    ),
    "layers in rounds": Case(
        classifier,
        {
            "pruning": {
                "cuts": [
                    cut("layers", criterion={"kind": "similarity", "samples": 32}),
                    cut("ffn_neurons", criterion={"kind": "random"}),
                ],
                "schedule": GRADUAL,
            },
            "finetuning": training(3, regularization={"kind": "l2"}),
        },
    ),
    "zeros that stay": Case(
        classifier,
        {
            "pruning": {"cuts": [cut("weights", criterion={"kind": "magnitude"})], "schedule": GRADUAL},
            "finetuning": training(2),
        },
    ),
    "momentum after movement": Case(
        classifier,
        {
            "pruning": {"cuts": [cut("ffn_neurons", criterion={"kind": "movement", "epochs": 1})]},
            "finetuning": training(2, optimizer=MOMENTUM, decay="cosine"),
        },
    ),
    "target": Case(
        classifier,
        {
            "pruning": {"target": {"metric": "flops", "ratio": 0.6, "samples": 32}, "schedule": GRADUAL},
            "finetuning": training(2),
            "exports": ["huggingface_custom"],
        },
    ),
    "narrower, in 16 bits": Case(
        halved_encoder,
        {
            "baseline": training(1),
            "pruning": {"cuts": [cut("hidden_size", criterion={"kind": "magnitude"}), cut("attention_layers")]},
            "finetuning": training(1, distillation={}),
            "precision": "bfloat16",
            "exports": ["huggingface_custom"],
        },
    ),
    "translation": Case(
        translator,
        {
            "task": "translation",
            "pruning": {"cuts": [cut("ffn_neurons")]},
            "finetuning": training(2, distillation={}),
            "beams": 1,
        },
    ),
    "vocabulary": Case(
        classifier,
        {
            "pruning": {
                "cuts": [{"structure": "vocabulary"}, cut("ffn_neurons", 0.25, {"kind": "magnitude"})],
                "schedule": GRADUAL,
            },
            "finetuning": training(2, distillation={}),
        },
    ),
}


def prepared(folder: Path, case: Case, inputs: Path, *, seconds: float = 0.0, **told: Any) -> Path:
    """A fresh work folder with links to the inputs, which a job only reads, and the order."""
    folder.mkdir(parents=True)
    shutil.copytree(inputs, folder / "in", copy_function=os.link)
    order(folder, **QUICK | case.parts)
    whole = json.loads((folder / "order.json").read_text())
    whole["configuration"]["model_id"] = "mdl_" + "0" * 26
    whole |= {"checkpoint_seconds": seconds} | told
    (folder / "order.json").write_text(json.dumps(whole))
    return folder


def engine(
    folder: Path, stop: Callable[[list[Line]], bool] = lambda _lines: False, by: signal.Signals = signal.SIGKILL
) -> tuple[int, list[Line]]:
    """Runs the engine in `folder`; sends it `by` once `stop` says so of the lines told. Its exit code and lines."""
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "workers.engine", str(folder), "--report-fd", str(writing)]
    environment = {"PATH": os.defpath, "HOME": str(folder), "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": "0"}
    lines: list[Line] = []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=[writing], env=environment, stdout=log, stderr=log)
        os.close(writing)
        with os.fdopen(reading) as told:
            for line in told:
                lines.append(json.loads(line))
                if stop(lines):
                    process.send_signal(by)
                    stop = lambda _lines: False  # noqa: E731
        return process.wait(), lines


def carry_out(folder: Path, *, seconds: float = 60.0, divisor: int = 1) -> list[Line]:
    """The same job in this process, which saves the seconds that a fresh one takes to start; its lines."""
    spec = JobSpec.model_validate(json.loads((folder / "order.json").read_text())["configuration"])
    lines = io.StringIO()
    compress(folder, spec, Reporter(lines), 1, Terms(seconds, divisor))
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def newest(folder: Path) -> Path:
    """The last checkpoint that a job left."""
    return max((folder / "checkpoints").glob("0*"))


def handed_over(checkpoint: Path, folder: Path) -> Path:
    """A work folder whose job begins with a checkpoint of another."""
    shutil.copytree(checkpoint, folder / "in" / "checkpoint")
    return folder


def artifacts(folder: Path) -> dict[str, str]:
    """Digests of all that is published but the report, which tells times."""
    files = [file for file in sorted((folder / "out").rglob("*")) if file.is_file() and "report" not in file.parts]
    return {
        file.relative_to(folder / "out").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
