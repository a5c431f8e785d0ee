"""Tiny random networks of every family, with outputs that differ from row to row."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from workers.engine.modeling_secateur import resize

FAMILIES = ("bert", "distilbert", "roberta")
UNEVEN = {"attention_heads": [3, 1], "head_size": 8, "ffn_width": [20, 33]}
"""Sizes per layer that no stock config can express."""

LARGE_INIT = 0.2
"""Standard deviation of the weights: at the usual 0.02 a random network answers every row alike."""


def tiny_network(
    family: str, *, seed: int = 0, uneven: bool = False, vocabulary: int = 120, labels: int = 3
) -> PreTrainedModel:
    """Two layers of four heads, hidden size 32, FFN width 48, three labels; with `uneven` the sizes of UNEVEN."""
    torch.manual_seed(seed)
    network = _build(family, vocabulary, labels)
    if uneven:
        resize(network, UNEVEN)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, LARGE_INIT)
            elif "norm" not in name.lower():
                parameter.normal_(0, 0.02)
    network.train(False)
    return network


def _build(family: str, vocabulary: int, labels: int) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "max_position_embeddings": 40,
        "num_labels": labels,
        "attn_implementation": "eager",
    }
    if family == "distilbert":
        return DistilBertForSequenceClassification(
            DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=0, **sizes)
        )
    encoder: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    } | sizes
    if family == "bert":
        return BertForSequenceClassification(BertConfig(pad_token_id=0, **encoder))
    return RobertaForSequenceClassification(RobertaConfig(type_vocab_size=1, pad_token_id=1, **encoder))
