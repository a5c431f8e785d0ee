"""Tiny models and data sets on disk, with a tokenizer, made without any network."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertTokenizer, PreTrainedModel

from service.catalog import FAMILIES

GOOD = ("good", "great", "fine", "lovely")
BAD = ("bad", "awful", "poor", "dull")
FILLER = ("the", "film", "was", "a", "very", "and", "plot", "actor", "scene", "it")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER)
LARGE_INIT = 0.2
"""Standard deviation of the weights: at the usual 0.02 a random network answers every row alike."""

_TABLES = {"vocab_size": 120, "max_position_embeddings": 40}
_ENCODER: dict[str, Any] = {
    **_TABLES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
_ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
_BART: dict[str, Any] = {
    **_TABLES,
    **_ENDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "forced_eos_token_id": 3,
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "distilbert": {**_TABLES, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 0},
    "roberta": {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1},
    "electra": {**_ENCODER, "embedding_size": 24},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "albert": {**_ENCODER, "embedding_size": 24},
    "marian": _BART,
    "bart": _BART,
    "t5": {
        "vocab_size": 120,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "decoder_start_token_id": 0,
    },
    "gpt2": {
        "vocab_size": 120,
        "n_positions": 40,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER,
}
"""Two layers of four heads, hidden size 32 and 48 neurons; a second stack has one layer."""


def tiny_network(family: str, architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random network of a class of transformers; `changes` go to its config."""
    torch.manual_seed(seed)
    kind = getattr(transformers, architecture)
    network: PreTrainedModel = kind(kind.config_class(**{**SIZES[family], **changes}))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, LARGE_INIT)
            elif "norm" not in name.lower():
                parameter.normal_(0, 0.02)
    network.train(False)
    return network


def tiny_model(folder: Path, family: str = "bert", *, head: bool = True) -> Path:
    """A Hugging Face directory: a classifier of two labels, or with `head` False its bare encoder."""
    architecture = f"{_prefix(family)}ForSequenceClassification"
    network = tiny_network(family, architecture)
    saved = network if head else network.base_model
    assert isinstance(saved, PreTrainedModel)
    saved.save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab=str(vocabulary)).save_pretrained(folder)
    return folder


def _prefix(family: str) -> str:
    """What the classes of a family begin with."""
    return next(iter(FAMILIES[family].architectures)).removesuffix("Model")


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
