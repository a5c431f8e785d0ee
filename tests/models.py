"""Tiny models and data sets on disk, with a tokenizer, made without any network."""

import json
import random
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedModel

from tests.workers.engine.tiny import tiny_network

GOOD = ("good", "great", "fine", "lovely")
BAD = ("bad", "awful", "poor", "dull")
FILLER = ("the", "film", "was", "a", "very", "and", "plot", "actor", "scene", "it")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER)


def tiny_model(folder: Path, family: str = "bert", *, head: bool = True) -> Path:
    """A Hugging Face directory: a classifier of two labels, or with `head` False its bare encoder."""
    network = tiny_network(family, vocabulary=120, labels=2)
    saved = network if head else network.base_model
    assert isinstance(saved, PreTrainedModel)
    saved.save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab=str(vocabulary)).save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose label a single word gives away."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        label = chance.randrange(2)
        words = chance.choices(FILLER, k=chance.randrange(3, 12))
        words.insert(chance.randrange(len(words)), chance.choice((BAD, GOOD)[label]))
        made.append({"text": " ".join(words), "label": label})
    return made


def tiny_dataset(folder: Path, *, train: int = 128, validation: int = 32, test: int = 64) -> Path:
    """Splits as JSONL files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        lines = "".join(json.dumps(row) + "\n" for row in rows(count, seed))
        (folder / f"{split}.jsonl").write_text(lines)
    return folder
