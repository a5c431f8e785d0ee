"""Checkpoints on disk: folders of safetensors and JSON that are whole before they have their name."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.specs import JobSpec
from workers.engine.snapshot import Values

MANIFEST, STATE = "checkpoint.json", "state.json"
VERSION = 1
"""Of the format; a checkpoint of another one is of no use."""
KEPT = 2
"""How many stay: the one before the newest serves where the newest turns out to be damaged."""
FILE = re.compile(r"[a-z]+\.(json|safetensors)")
ASIDE = {"name", "metadata", "priority", "timeout", "webhook_url", "reuse", "expires_after"}
"""Parts of an order that change nothing of the network."""
PIECE = 1 << 20


class Unusable(Exception):
    """A checkpoint that is incomplete, damaged, or of another job."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a job needs to go on."""

    state: dict[str, Any]
    """JSON values."""
    tensors: Mapping[str, Values]
    """Tensors by name, by the name of their file."""


def fingerprint_of(spec: JobSpec) -> str:
    """What job a checkpoint is of: the order, and the libraries that give parts of a network their names."""
    order = spec.model_dump(mode="json", exclude=ASIDE)
    told = json.dumps([order, str(torch.__version__), transformers.__version__], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def write(checkpoint: Checkpoint, folder: Path, fingerprint: str) -> None:
    """Makes the folder, which gets its name when all of it is on the disk. Raises OSError or SafetensorError."""
    unfinished = folder.with_name(f".{folder.name}")
    unfinished.mkdir(parents=True)
    try:
        for name, tensors in checkpoint.tensors.items():
            save_file({key: _storable(value) for key, value in tensors.items()}, unfinished / f"{name}.safetensors")
        (unfinished / STATE).write_text(json.dumps(checkpoint.state, allow_nan=False))
        files = {file.name: _facts(file) for file in sorted(unfinished.iterdir())}
        manifest = {"version": VERSION, "fingerprint": fingerprint, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (*unfinished.iterdir(), unfinished):
            _sync(path)
        unfinished.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def forget_old(folder: Path) -> None:
    """Leaves the newest checkpoints in `folder`; whoever takes them away from there is not in the way."""
    names = sorted(path for path in folder.glob("[0-9]*") if path.is_dir())
    for path in names[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def read(folder: Path, fingerprint: str) -> Checkpoint:
    """The checkpoint in a folder, once every file has proved to be what it was. Raises Unusable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if (manifest["version"], manifest["fingerprint"]) != (VERSION, fingerprint):
            raise Unusable("it is of another job or another version")
        for name, facts in manifest["files"].items():
            if not FILE.fullmatch(name) or _facts(folder / name) != facts:
                raise Unusable("a file is not what it was")
        tensors = {Path(name).stem: load_file(folder / name) for name in manifest["files"] if name != STATE}
        return Checkpoint(json.loads((folder / STATE).read_text()), tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise Unusable("it is not whole") from error


def _storable(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _facts(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
    return {"sha256": digest.hexdigest(), "size": file.stat().st_size}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
