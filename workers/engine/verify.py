"""Loads exported networks in a fresh process and compares their outputs with references: `python -I verify.py REQUEST`.

Imports nothing of ours, so that what passes here passes for a stranger. REQUEST is a JSON file:

    {"comparisons": [one for each network:
        {"references": ["0.safetensors", …],    inputs by name, and the outputs expected of them
         "outputs": ["logits"],                 names of the outputs
         "auto": "AutoModelForMaskedLM",        the class of transformers that loads the network
         "artifacts": [{"name", "loader": "stock"|"custom"|"onnx", "path", "max_error": 1e-4, "min_agreement": 1.0}]}],
     "threads": 1,
     "answer": "answer.json"}                   written here: [{"name", "failure": text|null, "error", "agreement"}]

The exit status is 0 whenever the answer was written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

Arrays = dict[str, NDArray[Any]]

CLEAR_MARGIN = 0.5
"""A row is clear when its margin between best and second class is at least this share of the largest margin."""


class HuggingFace:
    """A Hugging Face directory, as any client loads it; `custom` runs the modelling file in it."""

    def __init__(self, path: str, auto: str, outputs: list[str], custom: bool) -> None:
        self.outputs = outputs
        self.network, info = getattr(transformers, auto).from_pretrained(
            path, trust_remote_code=custom, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        wrong = [f"{len(names)} {kind.replace('_', ' ')}" for kind, names in info.items() if names]
        if wrong:
            raise ValueError(f"weights do not fit: {', '.join(wrong)}")
        self.network.eval()

    def __call__(self, inputs: Arrays) -> list[NDArray[Any]]:
        with torch.inference_mode():
            found = self.network(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return [found[name].numpy() for name in self.outputs]


class Onnx:
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, path: str, outputs: list[str], threads: int) -> None:
        self.outputs = outputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Arrays) -> list[NDArray[Any]]:
        return list(self.session.run(self.outputs, inputs))


def load(artifact: dict[str, Any], comparison: dict[str, Any]) -> HuggingFace | Onnx:
    """Loads one artifact the way its `loader` says."""
    path, outputs = artifact["path"], comparison["outputs"]
    if artifact["loader"] == "onnx":
        return Onnx(path, outputs, torch.get_num_threads())
    return HuggingFace(path, comparison["auto"], outputs, custom=artifact["loader"] == "custom")


def as_rows(outputs: list[NDArray[Any]]) -> NDArray[Any]:
    """Outputs of (…, classes), one below the other; of different widths, one value to a row."""
    widths = {output.shape[-1] for output in outputs}
    width = widths.pop() if len(widths) == 1 else 1
    return np.concatenate([output.reshape(-1, width).astype(np.float64) for output in outputs])


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Euclidean distance of all outputs over the norm of the expected ones.

    Where there are several classes, each row is centred first: softmax does not see a shift of the whole row.
    """
    if wanted.shape[1] > 1:
        found, wanted = (rows - rows.mean(axis=1, keepdims=True) for rows in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-9))


def agreement(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Share of the clear rows whose best class is the expected one; rows near a tie say nothing about an export."""
    if wanted.shape[1] < 2:
        return 1.0
    top = np.sort(wanted, axis=1)
    margin = top[:, -1] - top[:, -2]
    clear = margin >= CLEAR_MARGIN * margin.max()
    return float((found.argmax(axis=1) == wanted.argmax(axis=1))[clear].mean())


def check(artifact: dict[str, Any], references: list[Arrays], comparison: dict[str, Any]) -> dict[str, Any]:
    """Runs one artifact on every reference; `failure` says what is wrong with it."""
    report: dict[str, Any] = {"name": artifact["name"], "failure": None, "error": None, "agreement": None}
    names = comparison["outputs"]
    expected = [arrays[name] for arrays in references for name in names]
    try:
        network = load(artifact, comparison)
        inputs = [{name: value for name, value in arrays.items() if name not in names} for arrays in references]
        outputs = [output for arrays in inputs for output in network(arrays)]
    except Exception as error:  # whatever a loader or runtime raises, the artifact is what failed
        print(f"{artifact['name']}: {error}", file=sys.stderr)  # noqa: T201
        return report | {"failure": f"does not load and run ({type(error).__name__})"}
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return report | {"failure": "outputs have another shape"}
    if not all(np.isfinite(output).all() for output in outputs):
        return report | {"failure": "outputs are not finite"}
    found, wanted = as_rows(outputs), as_rows(expected)
    report |= {"error": relative_error(found, wanted), "agreement": agreement(found, wanted)}
    if report["error"] > artifact["max_error"]:
        report["failure"] = f"outputs differ by {report['error']:.2g}, at most {artifact['max_error']:g} is allowed"
    elif report["agreement"] < artifact["min_agreement"]:
        report["failure"] = f"only {report['agreement']:.0%} of the predictions agree"
    return report


def main(path: str) -> None:
    """Answers the request at `path`."""
    request = json.loads(Path(path).read_text())
    torch.set_num_threads(request["threads"])
    answer = []
    for comparison in request["comparisons"]:
        references = [load_file(file) for file in comparison["references"]]
        answer += [check(artifact, references, comparison) for artifact in comparison["artifacts"]]
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
