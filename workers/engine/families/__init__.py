"""Families: where each `model_type` keeps the parts of a layer, as data; chosen by the config, never by a substring."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from service import catalog
from workers.engine.failures import EngineError
from workers.engine.modeling_secateur import CLASSES, PATTERNS, set_heads


@dataclass(frozen=True)
class Layer:
    """The parts of one transformer layer that can be cut."""

    module: nn.Module
    attention: nn.Module
    heads_in: tuple[nn.Linear, ...]
    heads_out: nn.Linear
    ffn_in: nn.Linear
    ffn_out: nn.Linear


@dataclass(frozen=True)
class Family:
    """One architecture kind: its paths (`modeling_secateur.PATTERNS`) and its config keys (`service.catalog`)."""

    model_type: str

    @property
    def pattern(self) -> dict[str, Any]:
        """Paths of the parts of a layer."""
        return PATTERNS[self.model_type]

    @property
    def keys(self) -> catalog.Family:
        """Names of the sizes in the config."""
        return catalog.FAMILIES[self.model_type]

    def stack(self, network: PreTrainedModel) -> nn.ModuleList:
        """The list of transformer layers."""
        stack = network.base_model.get_submodule(self.pattern["layers"])
        assert isinstance(stack, nn.ModuleList)
        return stack

    def layers(self, network: PreTrainedModel) -> list[Layer]:
        """Every transformer layer's parts, in order."""
        return [self._parts(module) for module in self.stack(network)]

    def _parts(self, module: nn.Module) -> Layer:
        def linear(path: str) -> nn.Linear:
            found = module.get_submodule(path)
            assert isinstance(found, nn.Linear)
            return found

        return Layer(
            module=module,
            attention=module.get_submodule(self.pattern["attention"]),
            heads_in=tuple(linear(path) for path in self.pattern["heads_in"]),
            heads_out=linear(self.pattern["heads_out"]),
            ffn_in=linear(self.pattern["ffn_in"]),
            ffn_out=linear(self.pattern["ffn_out"]),
        )

    def load(self, folder: Path, *, new_labels: list[str] | None = None, seed: int = 0) -> PreTrainedModel:
        """The classifier in `folder`, in float32; with `new_labels` its head is fresh and random under `seed`.

        Raises EngineError MODEL_UNUSABLE where weights are missing, which the library would make up in silence.
        """
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        ours = CLASSES[self.model_type] if hasattr(config, "secateur_structure") else None
        if new_labels is None:
            return _complete(ours or AutoModelForSequenceClassification, folder, config)
        torch.manual_seed(seed)
        encoder = _complete(ours or AutoModel, folder, config, but=HEADS).base_model
        config.id2label = dict(enumerate(new_labels))
        config.label2id = {label: index for index, label in enumerate(new_labels)}
        config.problem_type = "single_label_classification"
        torch.manual_seed(seed)
        network = ours(config) if ours else AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        assert isinstance(network, PreTrainedModel)
        network.base_model.load_state_dict(encoder.state_dict(), strict=False)
        return network

    def example(self, network: PreTrainedModel) -> dict[str, Tensor]:
        """Inputs of (2, 16), by the names that the network takes: a batch of one would be exported as a constant."""
        names = ["input_ids", "attention_mask"]
        if getattr(network.config, "type_vocab_size", 1) > 1:
            names.append("token_type_ids")
        shape = (2, min(16, self.longest(network)))
        return {name: torch.ones(shape, dtype=torch.long) for name in names}

    def longest(self, network: PreTrainedModel) -> int:
        """The most tokens that the network's position table allows."""
        return int(network.config.max_position_embeddings) - self.keys.position_offset

    def refresh(self, network: PreTrainedModel) -> None:
        """Keep the network's own numbers true to its weights after a cut: config, head counts, layer indices."""
        head_size = head_size_of(network)
        layers = self.layers(network)
        for index, layer in enumerate(layers):
            set_heads(layer.attention, self.pattern, layer.heads_out.in_features // head_size, head_size)
            for module in layer.module.modules():
                if getattr(module, "layer_idx", None) is not None:
                    setattr(module, "layer_idx", index)  # noqa: B010 - torch types attributes as tensors
        setattr(network.config, self.keys.layers, len(layers))
        widths = {layer.ffn_in.out_features for layer in layers}
        if len(widths) == 1:
            setattr(network.config, self.keys.ffn, widths.pop())


HEADS = ("pooler", "classifier", "pre_classifier")
"""Parts that are new where a head is: an encoder may come without them."""


def _complete(loader: Any, folder: Path, config: Any, but: tuple[str, ...] = ()) -> PreTrainedModel:
    network, found = loader.from_pretrained(
        folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    missing = [key for key in found["missing_keys"] if not any(part in key.split(".") for part in but)]
    if missing or found["mismatched_keys"]:
        raise EngineError("MODEL_UNUSABLE", "the model lacks some of its weights; upload it whole", blame="user")
    assert isinstance(network, PreTrainedModel)
    return network


FAMILIES: dict[str, Family] = {name: Family(name) for name in ("bert", "distilbert", "roberta")}


def family_of(network: PreTrainedModel) -> Family:
    """The family of a live network."""
    return FAMILIES[network.config.model_type]


def family_in(folder: Path) -> Family:
    """The family of a saved network. Raises EngineError MODEL_UNUSABLE for an unknown `model_type`."""
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise EngineError("MODEL_UNUSABLE", f"the engine knows only {', '.join(sorted(FAMILIES))}", blame="user")
    return FAMILIES[model_type]


def head_size_of(network: PreTrainedModel) -> int:
    """Width of one attention head; the family's configs fix it to hidden size over the uncut number of heads."""
    keys = family_of(network).keys
    return int(getattr(network.config, keys.hidden)) // int(getattr(network.config, keys.heads))


def structure_of(network: PreTrainedModel) -> dict[str, Any]:
    """Sizes layer by layer: `layers, hidden_size, attention_heads, head_size, ffn_width, vocabulary`."""
    family = family_of(network)
    layers, head_size = family.layers(network), head_size_of(network)
    return {
        "layers": len(layers),
        "hidden_size": int(getattr(network.config, family.keys.hidden)),
        "attention_heads": [layer.heads_out.in_features // head_size for layer in layers],
        "head_size": head_size,
        "ffn_width": [layer.ffn_in.out_features for layer in layers],
        "vocabulary": int(network.config.vocab_size),
    }


def labels_of(network: PreTrainedModel) -> list[str]:
    """The labels of the head, by index."""
    names: dict[Any, str] = network.config.id2label or {}
    return [names[index] for index in range(len(names))]


def is_stock(network: PreTrainedModel) -> bool:
    """Whether a stock config expresses the sizes: all heads there, one feed-forward width in all layers."""
    structure = structure_of(network)
    whole = all(heads * structure["head_size"] == structure["hidden_size"] for heads in structure["attention_heads"])
    return whole and len(set(structure["ffn_width"])) == 1
