"""Writing a Hugging Face directory: weights as safetensors, an edited config, the inert files of the upload."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

INERT_SUFFIXES = frozenset({".json", ".txt", ".model", ".spm", ".jinja"})
"""Data files: vocabularies, merges, tokenizers, chat templates that nothing here renders, pooling configs; no code."""


def write_folder(network: PreTrainedModel, folder: Path, source: Path, config: dict[str, Any]) -> None:
    """Saves `network` into `folder`; keys of `config` replace the saved ones, those that are None are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)
    path = folder / "config.json"
    # The engine turns the cache off to train; whoever loads the result wants it as it was.
    saved = json.loads(path.read_text()) | {"use_cache": None} | config
    path.write_text(json.dumps({key: saved[key] for key in sorted(saved) if saved[key] is not None}, indent=2) + "\n")
    copy_inert(source, folder)


def copy_inert(source: Path, folder: Path) -> None:
    """Copies tokenizer and other data files of `source` that `folder` does not have; no weights, index or links."""
    for file in sorted(source.rglob("*")):
        target = folder / file.relative_to(source)
        wanted = file.suffix in INERT_SUFFIXES and not file.name.endswith(".safetensors.index.json")
        if wanted and file.is_file() and not file.is_symlink() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
