"""Which positions of a batch are tokens: padding says nothing of what a unit is worth."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class Tokens:
    """Watches the masks that a network is given."""

    def __init__(self, network: PreTrainedModel) -> None:
        self._masks: list[Tensor] = []
        self._handle = network.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _network: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        names = ("decoder_attention_mask", "attention_mask")
        self._masks = [inputs[name] for name in names if inputs.get(name) is not None]

    def rows(self, states: Tensor) -> Tensor:
        """The vectors of (tokens, features) in `states` of (batch, positions, features), in float32."""
        flat = states.detach().float().flatten(0, -2)
        for mask in self._masks:
            if mask.shape == states.shape[:2]:
                return flat[mask.flatten().bool()]
        return flat

    def close(self) -> None:
        """Stops watching."""
        self._handle.remove()
