"""The engine as a process, and how it names what ends it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from service.ids import new_id
from service.specs import JobSpec
from tests.models import tiny_model
from workers.engine.__main__ import classify
from workers.engine.failures import EngineError
from workers.engine.work import prepare


def order(folder: Path, **parts: Any) -> None:
    cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
    spec: dict[str, Any] = {
        "name": "tiny",
        "model_id": new_id("mdl"),
        "task": "text-classification",
        "pruning": {"cuts": [cut]},
        "benchmark": None,
    }
    configuration = JobSpec.model_validate(spec | parts).model_dump(mode="json")
    told = {"configuration": configuration, "model": known_of(folder / "in" / "model"), "max_threads": 1}
    (folder / "order.json").write_text(json.dumps(told))


def known_of(model: Path) -> dict[str, Any]:
    """What the service knows of a model that was uploaded."""
    tensors = [tensor for file in model.glob("*.safetensors") for tensor in load_file(file).values()]
    config = json.loads((model / "config.json").read_text()) if model.exists() else {}
    return {
        "family": config.get("model_type", "bert"),
        "architecture": (config.get("architectures") or ["unknown"])[0],
        "task": None,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtype": "float32",
        "structure": {"layers": 2, "hidden_size": 32, "attention_heads": [], "ffn_width": [], "vocabulary": 120},
        "facts": {"uniform": True, "max_length": None},
    }


def halve(file: Path) -> None:
    """Stores the weights in float16."""
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


def start(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "workers.engine", str(folder), "--report-fd", str(writing)]
    with os.fdopen(reading) as lines:
        process = subprocess.run(command, pass_fds=[writing], capture_output=True)
        os.close(writing)
        return process.returncode, [json.loads(line) for line in lines]


def test_a_job_as_a_process(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "in" / "model")
    halve(model / "model.safetensors")
    order(tmp_path)
    code, lines = start(tmp_path)
    assert code == 0, lines
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["after"]["structure"]["ffn_width"] == [24, 24]
    assert result["before"]["metrics"] == {} and result["after"]["latency"] == []
    assert (result["passed"], result["verdict"]) == (True, [])
    assert (tmp_path / "out" / result["model"]["directory"] / "model.safetensors").exists()
    saved = load_file(tmp_path / "out" / result["model"]["directory"] / "model.safetensors")
    assert result["model"]["dtype"] == "float16"
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert result["after"]["size"] == sum(tensor.numel() * 2 for tensor in saved.values())
    assert result["before"]["size"] == result["before"]["parameters"] * 2
    assert [line["phase"] for line in lines if line["type"] == "phase"][:2] == ["loading", "pruning"]
    assert set(result["engine"]["seconds"]) == {"loading", "pruning", "evaluating", "exporting", "verifying"}


def test_an_error_is_one_line_and_no_result(tmp_path: Path) -> None:
    tiny_model(tmp_path / "in" / "model")
    (tmp_path / "in" / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    order(tmp_path)
    code, lines = start(tmp_path)
    assert code == 1
    assert (lines[-1]["type"], lines[-1]["code"], lines[-1]["blame"]) == ("error", "MODEL_UNUSABLE", "user")
    assert not (tmp_path / "result.json").exists()


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    order(tmp_path, device="cuda")
    spec = JobSpec.model_validate(json.loads((tmp_path / "order.json").read_text())["configuration"])
    with pytest.raises(EngineError) as caught:
        prepare(tmp_path, spec, None)
    assert (caught.value.code, caught.value.blame) == ("DEVICE_NOT_AVAILABLE", "user")


class PanicException(BaseException):
    """What Rust's libraries raise; no module has the class itself."""


@pytest.mark.parametrize(
    ("error", "code", "blame"),
    [
        (EngineError("DIVERGED", "lower learning_rate", blame="user"), "DIVERGED", "user"),
        (MemoryError(), "OUT_OF_MEMORY", "user"),
        (PanicException("/secret/path"), "TOKENIZER_UNUSABLE", "user"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "OUT_OF_MEMORY", "user"),
        (OSError(errno.ENOSPC, "full"), "NO_SPACE", "transient"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "NO_SPACE", "transient"),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "NO_SPACE", "transient"),
        (OSError(errno.EIO, "broken"), "STORAGE_ERROR", "transient"),
        (SafetensorError("I/O error: Input/output error (os error 5)"), "STORAGE_ERROR", "transient"),
        (ValueError("/secret/path"), "ENGINE_ERROR", "service"),
    ],
)
def test_what_ends_a_job_has_a_name(error: BaseException, code: str, blame: str) -> None:
    failure = classify(error)
    assert (failure.code, failure.blame) == (code, blame)
    assert "secret" not in failure.message
