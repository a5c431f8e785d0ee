"""Measures the peak memory of inference on the CPU in a fresh process: `python -I memory.py REQUEST`.

REQUEST is a JSON file: {"modeling": path of modeling_secateur.py, "stock": name of a class of transformers,
"config": {…config.json…}, "sizes": {…}, "inputs": names, "dtype", "batch_size", "sequence_length", "threads",
"answer": path}. Written to `answer`: bytes of resident memory at
the peak of loading weights and running one batch, above the interpreter with its libraries and warm kernels.
Only sizes matter, so the weights are constants; nothing is read from disk.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers import AutoConfig


def peak_resident() -> int:
    """Largest resident memory of this process so far, in bytes (VmHWM of Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def warm_up(dtype: torch.dtype) -> None:
    """Runs every kind of kernel once at a small size, so that the libraries' own buffers are not counted."""
    rows = torch.ones(2, 8, 32, dtype=dtype)
    scores = torch.matmul(rows, rows.transpose(1, 2)).softmax(-1)
    hidden = functional.linear(torch.matmul(scores, rows), torch.ones(32, 32, dtype=dtype), torch.ones(32, dtype=dtype))
    functional.gelu(functional.layer_norm(hidden, (32,)))
    functional.scaled_dot_product_attention(rows, rows, rows)


def build(request: dict[str, Any], modeling: Any) -> Any:
    """The network without storage: its shapes alone, on the meta device."""
    settings = dict(request["config"]) | {"secateur_sizes": request["sizes"], "use_cache": False}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        network: Any = modeling.sized(getattr(transformers, request["stock"]))(config)
    return network.to(getattr(torch, request["dtype"])).eval()


def measure(request: dict[str, Any]) -> int:
    """Peak bytes of holding the network and running one batch."""
    spec = importlib.util.spec_from_file_location("modeling_secateur", request["modeling"])
    if spec is None or spec.loader is None:
        raise ImportError("modeling_secateur")
    modeling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    network = build(request, modeling)
    ids = torch.ones(request["batch_size"], request["sequence_length"], dtype=torch.long)
    with torch.inference_mode():
        warm_up(getattr(torch, request["dtype"]))
        before = peak_resident()
        network.to_empty(device="cpu")
        for tensor in network.state_dict(keep_vars=True).values():
            tensor.fill_(0.01)
        for buffer in network.buffers():
            buffer.zero_()
        network(**{name: torch.zeros_like(ids) if "type" in name else ids for name in request["inputs"]})
    return peak_resident() - before


def main(path: str) -> None:
    """Answers the request at `path`."""
    request = json.loads(Path(path).read_text())
    torch.set_num_threads(request["threads"])
    Path(request["answer"]).write_text(json.dumps(measure(request)))


if __name__ == "__main__":
    main(sys.argv[1])
