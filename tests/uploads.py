"""Uploads made by hand, a byte at a time where need be: model directories, safetensors, tar and zip files."""

import io
import json
import math
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

Files = dict[str, bytes]

CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "id2label": {"0": "no", "1": "yes"},
    "pad_token_id": 0,
}
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(15))]


def safetensors(tensors: Mapping[str, tuple[int, ...]], *, metadata: dict[str, str] | None = None) -> bytes:
    """A file of float32 tensors of these shapes, with small random values."""
    chance = random.Random(0)
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, shape in tensors.items():
        values = [chance.uniform(-0.1, 0.1) for _ in range(math.prod(shape))]
        start, data = len(data), data + struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, len(data)]}
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with these bytes as its header."""
    return struct.pack("<Q", len(header)) + header + data


def bert_shapes(config: Mapping[str, Any] = CONFIG, *, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a BERT classifier of this config has."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "bert.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        **_norm("bert.embeddings.LayerNorm", hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        stem = f"bert.encoder.layer.{layer}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{stem}attention.{name}", hidden, hidden)
        shapes |= _norm(f"{stem}attention.output.LayerNorm", hidden)
        shapes |= _linear(f"{stem}intermediate.dense", wide, hidden)
        shapes |= _linear(f"{stem}output.dense", hidden, wide)
        shapes |= _norm(f"{stem}output.LayerNorm", hidden)
    if head:
        shapes |= _linear("bert.pooler.dense", hidden, hidden)
        shapes |= _linear("classifier", len(config["id2label"]), hidden)
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def bert_files(changes: Mapping[str, Any] | None = None, *, head: bool = True) -> Files:
    """A consistent BERT directory; `changes` go to its config, and None removes a key."""
    config = {key: value for key, value in {**CONFIG, **(changes or {})}.items() if value is not None}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors(bert_shapes({**CONFIG, **config}, head=head)),
        "vocab.txt": "\n".join(_WORDS).encode(),
    }


def tar(files: Mapping[str, bytes], mode: str = "w", extra: Iterable[tarfile.TarInfo] = ()) -> bytes:
    """A tar (`w`, `w:gz`) of files in their order, then of `extra` members without content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return target.getvalue()


def member(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A header of a tar member."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of files in their order."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def form(parts: Mapping[str, bytes], boundary: str = "limit") -> tuple[bytes, str]:
    """A multipart/form-data body and its content type."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in parts.items()
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
