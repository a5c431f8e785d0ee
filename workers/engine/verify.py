"""Loads exported networks in a fresh process and compares their outputs with references: `python -I verify.py REQUEST`.

Imports nothing of ours, so that what passes here passes for a stranger. REQUEST is a JSON file:

    {"references": ["0.safetensors", …],        inputs by name, and `logits`, the outputs expected of them
     "artifacts": [{"name", "loader": "stock"|"custom"|"onnx", "path", "max_error": 1e-4, "min_agreement": 1.0}],
     "threads": 1,
     "answer": "answer.json"}                    written here: [{"name", "failure": text|null, "error", "agreement"}]

The exit status is 0 whenever the answer was written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

Arrays = dict[str, NDArray[Any]]

CLEAR_MARGIN = 0.5
"""A row is clear when its margin between best and second label is at least this share of the largest margin."""


class HuggingFace:
    """A Hugging Face directory, as any client loads it; `custom` runs the modelling file in it."""

    def __init__(self, path: str, custom: bool) -> None:
        self.network, info = AutoModelForSequenceClassification.from_pretrained(
            path, trust_remote_code=custom, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        wrong = [f"{len(names)} {kind.replace('_', ' ')}" for kind, names in info.items() if names]
        if wrong:
            raise ValueError(f"weights do not fit: {', '.join(wrong)}")
        self.network.eval()

    def __call__(self, inputs: Arrays) -> NDArray[Any]:
        with torch.inference_mode():
            logits = self.network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
        outputs: NDArray[Any] = logits.numpy()
        return outputs


class Onnx:
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Arrays) -> NDArray[Any]:
        outputs: NDArray[Any] = self.session.run(["logits"], inputs)[0]
        return outputs


def load(artifact: dict[str, Any], threads: int) -> HuggingFace | Onnx:
    """Loads one artifact the way its `loader` says."""
    if artifact["loader"] == "onnx":
        return Onnx(artifact["path"], threads)
    return HuggingFace(artifact["path"], custom=artifact["loader"] == "custom")


def relative_error(outputs: list[NDArray[Any]], expected: list[NDArray[Any]]) -> float:
    """Euclidean distance of all logits over the norm of the expected ones.

    Where there are several labels, each row is centred first: softmax does not see a shift of the whole row.
    """
    found, wanted = np.concatenate(outputs).astype(np.float64), np.concatenate(expected).astype(np.float64)
    if wanted.shape[1] > 1:
        found, wanted = (rows - rows.mean(axis=1, keepdims=True) for rows in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-9))


def agreement(outputs: list[NDArray[Any]], expected: list[NDArray[Any]]) -> float:
    """Share of the clear rows whose best label is the expected one; rows near a tie say nothing about an export."""
    found, wanted = np.concatenate(outputs), np.concatenate(expected)
    if wanted.shape[1] < 2:
        return 1.0
    top = np.sort(wanted, axis=1)
    margin = top[:, -1] - top[:, -2]
    clear = margin >= CLEAR_MARGIN * margin.max()
    return float((found.argmax(axis=1) == wanted.argmax(axis=1))[clear].mean())


def check(artifact: dict[str, Any], references: list[Arrays], threads: int) -> dict[str, Any]:
    """Runs one artifact on every reference; `failure` says what is wrong with it."""
    report: dict[str, Any] = {"name": artifact["name"], "failure": None, "error": None, "agreement": None}
    try:
        network = load(artifact, threads)
        outputs = [network({k: v for k, v in arrays.items() if k != "logits"}) for arrays in references]
    except Exception as error:  # whatever a loader or runtime raises, the artifact is what failed
        print(f"{artifact['name']}: {error}", file=sys.stderr)  # noqa: T201
        return report | {"failure": f"does not load and run ({type(error).__name__})"}
    expected = [arrays["logits"] for arrays in references]
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return report | {"failure": "outputs have another shape"}
    if not all(np.isfinite(output).all() for output in outputs):
        return report | {"failure": "outputs are not finite"}
    report |= {"error": relative_error(outputs, expected), "agreement": agreement(outputs, expected)}
    if report["error"] > artifact["max_error"]:
        report["failure"] = f"outputs differ by {report['error']:.2g}, at most {artifact['max_error']:g} is allowed"
    elif report["agreement"] < artifact["min_agreement"]:
        report["failure"] = f"only {report['agreement']:.0%} of the predictions agree"
    return report


def main(path: str) -> None:
    """Answers the request at `path`."""
    request = json.loads(Path(path).read_text())
    torch.set_num_threads(request["threads"])
    references = [load_file(file) for file in request["references"]]
    answer = [check(artifact, references, request["threads"]) for artifact in request["artifacts"]]
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
