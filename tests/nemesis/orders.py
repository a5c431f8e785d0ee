"""What clients send: specs of jobs that end in every way, small models and data sets that differ from one another."""

import hashlib
import json
from functools import cache
from typing import Any

from tests import uploads

LARGE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 400}
"""Some 500 kB of weights: several chunks."""
GIVES_UP_SECONDS = 5
_NOBODY = "." * 40


def spec(way: float, *, model_id: str, dataset_id: str, trained_share: float) -> dict[str, Any]:
    """An order by chance: mostly streamed in a second; some train, some miss their goal, some take too long."""
    order: dict[str, Any] = {"name": "nemesis", "model_id": model_id, "task": "text-classification", "benchmark": None}
    if way < trained_share:
        share = way / trained_share
        return order | _training(dataset_id, epochs=4 + int(share * 20)) | _limit(share)
    cut = {"structure": "weights", "ratio": round(0.1 + 0.8 * way, 3), "pattern": "unstructured"}
    order["pruning"] = {"cuts": [cut | {"criterion": {"kind": "magnitude"}}]}
    return order | ({"acceptance": [{"metric": "parameters", "max_ratio": 0.5}]} if way > 0.85 else {})


def _training(dataset_id: str, epochs: int) -> dict[str, Any]:
    cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
    training = {"epochs": epochs, "learning_rate": 1e-3, "batch_size": 16}
    return {"dataset_id": dataset_id, "pruning": {"cuts": [cut]}, "finetuning": training}


def _limit(share: float) -> dict[str, Any]:
    return {"timeout": GIVES_UP_SECONDS} if share > 0.8 else {}


@cache
def _directory() -> dict[str, bytes]:
    files = uploads.bert_files(LARGE)
    shapes = uploads.bert_shapes({**uploads.CONFIG, **LARGE})
    return files | {"model.safetensors": uploads.safetensors(shapes, metadata={"format": "pt", "made": _NOBODY})}


def model_files(name: str) -> dict[str, bytes]:
    """A Hugging Face directory whose file of weights nobody has sent before."""
    files = _directory()
    made = name.encode().rjust(len(_NOBODY), b".")
    return files | {"model.safetensors": files["model.safetensors"].replace(_NOBODY.encode(), made, 1)}


def manifest(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The body that begins an upload file by file."""
    listed = [{"path": path, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for path, b in files.items()]
    return {"name": name, "files": listed}


def dataset(name: str) -> tuple[bytes, str]:
    """A form with two splits, and its content type."""
    rows = [json.dumps({"text": f"{name} {word}", "label": label}) for label, word in enumerate(("bad", "good"))]
    body = "\n".join(rows * 40).encode()
    return uploads.form({"train": body, "test": body})
