"""Tiny networks with heads, a tokenizer and rows for every task."""

import json
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedModel

from tests.models import WORDS, tiny_network

PIECES = ("un", "##kind", "##s", "?", ".", "who", "where")
"""Words of the tokenizer besides those of `tests.models`; `unkinds` is three of its tokens."""
IDS = {word: index for index, word in enumerate((*WORDS, *PIECES))}


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """A data set of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tokenizer_in(folder: Path, **options: Any) -> Path:
    """A tokenizer of whole words, without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(IDS) + "\n")
    BertTokenizer(vocab=str(vocabulary), **options).save_pretrained(folder)
    return folder


def bert_for(task: str, **changes: Any) -> PreTrainedModel:
    """A tiny BERT with the head of `task`, such as `MaskedLM`; without one where it is empty."""
    return tiny_network("bert", f"BertFor{task}" if task else "BertModel", **changes)


def words(ids: list[int]) -> list[str]:
    """Tokens that ids stand for."""
    names = list(IDS)
    return [names[token] for token in ids]
