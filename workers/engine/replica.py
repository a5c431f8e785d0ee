"""Copies of a network to export, measure or compare, so that the network itself stays as and where it is."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel


def replica(
    network: PreTrainedModel, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """An independent copy in evaluation mode on `device`, its weights in `dtype` where one is given.

    Buffers that are not saved keep their type, as they do for whoever loads the weights: frequencies of rotary
    positions are made in float32, and in 16 bits they turn far positions elsewhere.
    """
    copied: Any = copy.deepcopy(network)
    twin: PreTrainedModel = copied.to(device).eval()
    if dtype is not None:
        made = [
            (module, name, module.get_buffer(name))
            for module in twin.modules()
            for name in module._non_persistent_buffers_set
        ]
        twin.to(dtype)  # type: ignore[arg-type] # transformers wraps it without its types
        for module, name, buffer in made:
            setattr(module, name, buffer)
    return twin
