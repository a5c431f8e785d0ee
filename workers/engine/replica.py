"""Copies of a network to export, measure or compare, so that the network itself stays as and where it is."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel


def replica(
    network: PreTrainedModel, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """An independent copy in evaluation mode on `device`, in `dtype` where one is given."""
    copied: Any = copy.deepcopy(network)
    twin: PreTrainedModel = copied.to(device=device, dtype=dtype).eval()
    return twin
