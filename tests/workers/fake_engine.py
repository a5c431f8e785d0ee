"""An engine that does what the job's metadata says: `python fake_engine.py WORK_DIR --report-fd N`, without torch."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1])
report = os.fdopen(int(sys.argv[3]), "w")
order = json.loads((folder / "order.json").read_text())
metadata: dict[str, str] = order["configuration"]["metadata"]


def tell(**line: Any) -> None:
    report.write(json.dumps(line) + "\n")
    report.flush()


def succeed(passed: bool = True) -> None:
    model = folder / "out/huggingface"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((folder / "in/model/model.safetensors").read_bytes())
    (folder / "out/onnx").mkdir()
    (folder / "out/onnx/model.onnx").write_bytes(b"graph")
    (folder / "out/onnx/model_int8.onnx").write_bytes(b"small graph")
    if "padding" in metadata:  # what takes its time to be published
        with (folder / "out/padding").open("wb") as file:
            file.truncate(int(metadata["padding"]))
    (folder / "out/report").mkdir()
    (folder / "out/report/report.html").write_text("<p>report</p>")
    structure = {
        "layers": 2,
        "hidden_size": 32,
        "attention_heads": [4, 4],
        "ffn_width": [24, 24],
        "vocabulary": 120,
    }
    side = {"metrics": {}, "parameters": 2, "nonzero_parameters": 2, "size": 8, "flops": None, "peak_memory": None}
    side |= {"latency": [], "structure": structure}
    result = {
        "verdict": [],
        "passed": passed,
        "before": side,
        "after": side | {"parameters": 1, "nonzero_parameters": 1, "size": 4},
        "model": {
            "directory": "huggingface",
            "family": "bert",
            "architecture": "BertForSequenceClassification",
            "task": "text-classification",
            "parameters": 1,
            "dtype": "float32",
            "structure": structure,
            "facts": {"labels": ["a", "b"], "max_length": 38, "has_head": True, "has_tokenizer": True, "uniform": True},
        },
        "engine": {"device": "cpu", "peak_memory": 1, "seconds": {}, "versions": {}},
    }
    (folder / "result.json").write_text(json.dumps(result))


def hang() -> None:
    Path(metadata["started"]).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def save(name: int, step: int) -> None:
    """Write a checkpoint and report it."""
    unfinished = folder / "checkpoints/unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "weights.safetensors").write_bytes(bytes(1000) + str(step).encode())
    (unfinished / "checkpoint.json").write_text(json.dumps({"step": step}))
    if metadata.get("break") == "link":
        (unfinished / "state.json").symlink_to("/etc/passwd")
    unfinished.rename(folder / f"checkpoints/{name}")
    tell(type="checkpoint", name=str(name), step=step)


def train() -> None:
    """Count to `steps` and save every fifth one; go on where an earlier attempt stopped; save and leave on SIGTERM."""
    saved = folder / "in/checkpoint/checkpoint.json"
    pause = float(metadata.get("pause", "0.02"))
    step = json.loads(saved.read_text())["step"] if saved.exists() else 0
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    with Path(metadata["started"]).open("a") as file:
        file.write(f"{step} ")
    for name in range(1, int(metadata["steps"]) + 1 - step):
        step += 1
        if asked and step % 5 == 0:  # one more, so that what it saves when asked can be told from the rest
            step += 1
        if asked or step % 5 == 0:
            save(name, step)
        if asked:
            tell(type="event", event="engine.left", level="info", message="Asked to leave.")
            sys.exit(75)
        tell(type="progress", fraction=0.5, step=step, total_steps=None, seconds_remaining=None)
        time.sleep(pause)
    succeed()


def occupied(inside: str) -> None:
    """Compute for ever, or sleep in C under the interpreter's lock; SIGTERM is taken, and never acted upon."""
    signal.signal(signal.SIGTERM, lambda number, _frame: None)
    Path(metadata["started"]).write_text(str(os.getpid()))
    while inside == "python":
        pass
    ctypes.PyDLL(None).sleep(600)


def allocate() -> None:
    """Take memory until there is no more, and say so as the engine does."""
    from workers.engine.__main__ import classify

    taken = []
    try:
        while True:
            taken.append(b"x" * (16 << 20))
    except MemoryError as error:
        taken.clear()
        told = classify(error)
        tell(type="error", code=told.code, message=told.message, blame=told.blame, retryable=told.retryable)
        sys.exit(1)


def run_out_of_gpu_memory() -> None:
    """Be the real engine, on a device where so many rows of a batch fit while training."""
    import torch

    from workers.engine.__main__ import main

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and module.training and len(inputs[0]) > int(metadata["fits"]):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    torch.nn.modules.module.register_module_forward_pre_hook(look)
    sys.exit(main())


def behave(behaviour: str) -> None:
    match behaviour:
        case "train":
            train()
        case "out_of_memory" if order["batch_divisor"] < int(metadata["fits"]):
            tell(type="error", code="OUT_OF_MEMORY", message="m", blame="user", retryable=False)
            sys.exit(1)
        case "out_of_memory":
            succeed()
        case "succeed":
            succeed()
        case "reject":
            succeed(passed=False)
        case "hang":
            hang()
        case "ignore_sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            hang()
        case "hang_with_child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(metadata["child"]).write_text(str(child.pid))
            hang()
        case "die":
            os.kill(os.getpid(), int(metadata["signal"]))
        case "kill_worker":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "busy":
            occupied("python")
        case "block":
            occupied("c")
        case "allocate":
            allocate()
        case "run_out_of_gpu_memory":
            run_out_of_gpu_memory()
        case "exit":
            sys.exit(3)
        case "say_why":
            tell(type="error", code="GPU_OUT_OF_MEMORY", message="lower batch_size", blame="user", retryable=False)
            sys.exit(1)
        case "no_result":
            pass
        case "bad_result":
            (folder / "result.json").write_text('{"passed": NaN}')
        case "link":
            succeed()
            (folder / "out/report/passwd").symlink_to("/etc/passwd")
        case "environment":
            (folder / "out/report").mkdir()
            Path(metadata["started"]).write_text(json.dumps(dict(os.environ)))
        case "wait":
            Path(metadata["started"]).write_text(str(os.getpid()))
            while not Path(metadata["go"]).exists():
                time.sleep(0.02)
            succeed()


tell(type="phase", phase="finetuning")
tell(type="progress", fraction=0.5, step=5, total_steps=10, seconds_remaining=1.5)
tell(type="metric", name="finetuning/loss", step=1, value=0.5)
tell(type="metric", name="finetuning/loss", step=1, value=0.25)
tell(type="metric", name="finetuning/loss", step=2, value=None)
tell(type="event", event="pruning.cut", level="info", message="Cut.", data={"heads": 2})
tell(type="event", event="job.succeeded", level="info", message="A lie.", data={})
tell(type="warning", code="INPUT_TRUNCATED", message="3 rows were cut.")
report.write("not JSON\n" + "x" * 100_000 + "\n")
report.flush()
print("on the log")
behave(metadata["behaviour"])
