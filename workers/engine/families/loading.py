"""Loading an uploaded network with the head that a task needs."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from workers.engine.failures import EngineError
from workers.engine.modeling_secateur import PREFIX, sized


def load_network(folder: Path, auto: str) -> PreTrainedModel:
    """The network in `folder` with the head of the class `auto`, in float32.

    Raises EngineError MODEL_UNUSABLE where weights are missing, which the library would make up in silence.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    network, missing = _read(_class_for(config, auto), folder, config)
    if missing:
        raise EngineError("MODEL_UNUSABLE", "the model lacks some of its weights; upload it whole", blame="user")
    return network


def load_skeleton(folder: Path, auto: str) -> PreTrainedModel:
    """The network of `load_network` without its weights: they stand on the meta device, what is computed on the CPU."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        network: PreTrainedModel = _class_for(config, auto)(config)
    with torch.no_grad():
        for module in network.modules():
            if module._non_persistent_buffers_set:
                module.to_empty(device="cpu", recurse=False)
                network._init_weights(module)
    network.train(False)
    return network


def load_with_new_head(
    folder: Path, auto: str, *, labels: list[str] | None, problem_type: str | None, seed: int
) -> PreTrainedModel:
    """The same, but with `labels` or where the upload has no such head it gets one that is random under `seed`.

    Raises EngineError MODEL_UNUSABLE where the network below the head is incomplete.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    wanted = _class_for(config, auto)
    torch.manual_seed(seed)
    found, missing = _read(_uploaded_class(config) or wanted, folder, config)
    prefix = f"{found.base_model_prefix}."
    if any(name.startswith(prefix) and "pooler" not in name for name in missing):
        raise EngineError("MODEL_UNUSABLE", "the model lacks some of its weights; upload it whole", blame="user")
    if labels is None and type(found) is wanted and not missing:
        return found
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if problem_type is not None:
        config.problem_type = problem_type
    torch.manual_seed(seed)
    network: PreTrainedModel = wanted(_without_head_sizes(config, found)).float()
    network.base_model.load_state_dict(found.base_model.state_dict(), strict=False)
    return network


def _class_for(config: PretrainedConfig, auto: str) -> Any:
    """The class that `auto` stands for, in our form where the config has sizes of its own."""
    stock = getattr(transformers, auto)._model_mapping[type(config)]
    stock = stock[0] if isinstance(stock, tuple) else stock
    return sized(stock) if hasattr(config, "secateur_sizes") else stock


def _uploaded_class(config: PretrainedConfig) -> Any:
    name = (config.architectures or [""])[0].removeprefix(PREFIX)
    stock = getattr(transformers, name, None)
    return sized(stock) if stock is not None and hasattr(config, "secateur_sizes") else stock


def _without_head_sizes(config: PretrainedConfig, found: PreTrainedModel) -> PretrainedConfig:
    """The config without what it says of the uploaded head, whose sizes a new one does not have."""
    if hasattr(config, "secateur_sizes"):
        stem = f"{found.base_model_prefix}."
        config.secateur_sizes = {
            kind: {path: value for path, value in sizes.items() if path.startswith(stem)}
            for kind, sizes in config.secateur_sizes.items()
        }
    return config


def _read(kind: Any, folder: Path, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    network, found = kind.from_pretrained(
        folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if found["mismatched_keys"]:
        raise EngineError("MODEL_UNUSABLE", "the model's weights do not fit its config; upload it whole", blame="user")
    _freeze(network, config)
    return network, list(found["missing_keys"])


def _freeze(network: PreTrainedModel, config: PretrainedConfig) -> None:
    """Freezes what its class builds frozen, such as sinusoidal positions: reading weights thaws it.

    Such weights are not saved with the network, so whatever training made of them would be lost.
    """
    with torch.device("meta"):
        built = type(network)(config)
    for name, parameter in built.named_parameters():
        if not parameter.requires_grad:
            network.get_parameter(name).requires_grad_(False)


def labels_of(network: PreTrainedModel) -> list[str]:
    """The labels of the head, by index."""
    names: dict[Any, str] = network.config.id2label or {}
    return [names[index] for index in range(len(names))]


def stock_class(network: PreTrainedModel) -> str:
    """Name of the stock class, also where `network` is an instance of ours."""
    return type(network).__name__.removeprefix(PREFIX)
