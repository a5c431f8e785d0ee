"""Encoders whose layers differ in attention heads or in feed-forward width, for `trust_remote_code=True`.

Stock configs know one head width (hidden size over heads) and one feed-forward width for all layers. Here
`config.json` lists what each layer kept under `secateur_structure`:

    {"attention_heads": [6, 4], "head_size": 64, "ffn_width": [1536, 1024]}

The stock class is built first, then its Linear layers get these sizes; its forward pass runs unchanged. This file
stands alone: it imports only torch and transformers, and travels with the weights.
"""

from typing import Any

from torch import nn
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
)

_BERT = {
    "layers": "encoder.layer",
    "attention": "attention.self",
    "heads_in": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "heads_out": "attention.output.dense",
    "head_counts": ("num_attention_heads",),
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
_DISTILBERT = {
    "layers": "transformer.layer",
    "attention": "attention",
    "heads_in": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "heads_out": "attention.out_lin",
    "head_counts": ("n_heads",),
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
}
PATTERNS: dict[str, dict[str, Any]] = {"bert": _BERT, "roberta": _BERT, "distilbert": _DISTILBERT}
"""Where each `model_type` keeps the parts of a layer: paths below the layer, `layers` below the base network."""


def _resize_linear(layer: nn.Module, path: str, inputs: int | None = None, outputs: int | None = None) -> None:
    """Replaces the Linear at `path` by one of other sizes, uninitialised, on the same device and of the same dtype."""
    parent_path, _, name = path.rpartition(".")
    old = layer.get_submodule(path)
    if not isinstance(old, nn.Linear):
        raise TypeError(f"{path} is not a Linear layer")
    inputs, outputs = inputs or old.in_features, outputs or old.out_features
    if (inputs, outputs) != (old.in_features, old.out_features):
        weight = old.weight
        new = nn.Linear(inputs, outputs, old.bias is not None, device=weight.device, dtype=weight.dtype)
        setattr(layer.get_submodule(parent_path), name, new)


def _check(structure: dict[str, Any], layers: int) -> None:
    for name in ("attention_heads", "ffn_width"):
        sizes = structure[name]
        if len(sizes) != layers or min(sizes, default=0) < 1:
            raise ValueError(f"secateur_structure: {name} needs one size of at least 1 for each of {layers} layers")


def resize(network: PreTrainedModel, structure: dict[str, Any]) -> None:
    """Gives every layer of a freshly built `network` the sizes in `structure`, in place.

    `structure` has `attention_heads` and `ffn_width` (one number per layer) and `head_size`; other keys are ignored.
    Changed Linear layers hold fresh weights afterwards: load the real ones next. Raises ValueError where the lists
    do not fit the number of layers, KeyError for a `model_type` that is not in `PATTERNS`.
    """
    pattern = PATTERNS[network.config.model_type]
    layers = list(network.base_model.get_submodule(pattern["layers"]).children())
    _check(structure, len(layers))
    head_size = structure["head_size"]
    for layer, heads, width in zip(layers, structure["attention_heads"], structure["ffn_width"], strict=True):
        for path in pattern["heads_in"]:
            _resize_linear(layer, path, outputs=heads * head_size)
        _resize_linear(layer, pattern["heads_out"], inputs=heads * head_size)
        set_heads(layer.get_submodule(pattern["attention"]), pattern, heads, head_size)
        _resize_linear(layer, pattern["ffn_in"], outputs=width)
        _resize_linear(layer, pattern["ffn_out"], inputs=width)


def set_heads(attention: Any, pattern: dict[str, Any], heads: int, head_size: int) -> None:
    """Keeps the counts that an attention module holds beside its weights true to its weights."""
    for name in pattern["head_counts"]:
        setattr(attention, name, heads)
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = heads * head_size
    attention.attention_head_size = head_size
    attention.scaling = head_size**-0.5


class SecateurBertForSequenceClassification(BertForSequenceClassification):
    """BERT with the sizes of `config.secateur_structure`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        resize(self, config.secateur_structure)


class SecateurDistilBertForSequenceClassification(DistilBertForSequenceClassification):
    """DistilBERT with the sizes of `config.secateur_structure`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        resize(self, config.secateur_structure)


class SecateurRobertaForSequenceClassification(RobertaForSequenceClassification):
    """RoBERTa with the sizes of `config.secateur_structure`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        resize(self, config.secateur_structure)


CLASSES: dict[str, type[PreTrainedModel]] = {
    "bert": SecateurBertForSequenceClassification,
    "distilbert": SecateurDistilBertForSequenceClassification,
    "roberta": SecateurRobertaForSequenceClassification,
}
"""The class for each `model_type`."""
