"""Where each family keeps its tensors, and of which shapes: weights must fit the config before they are kept."""

import math
from collections.abc import Callable, Mapping

from service.errors import Invalid
from service.intake.layouts.decoders import gpt2, llama, qwen2, qwen3
from service.intake.layouts.encoder_decoders import bart, marian, t5
from service.intake.layouts.encoders import albert, bert, deberta_v2, distilbert, electra, roberta
from service.intake.layouts.shapes import Layout, Shapes, Values
from service.intake.safetensors import DTYPES, Tensor

__all__ = ["LAYOUTS", "Weights"]

LAYOUTS: dict[str, Callable[[Values], Layout]] = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "xlm-roberta": roberta,
    "electra": electra,
    "deberta-v2": deberta_v2,
    "albert": albert,
    "marian": marian,
    "t5": t5,
    "bart": bart,
    "gpt2": gpt2,
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mistral": llama,
}
"""Given a checked config, the layout of its network."""


class Weights:
    """The tensors of a model, seen through its layout. `task` is that of its head, None for one without a head."""

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor], task: str | None) -> None:
        self._layout, self._tensors = layout, tensors
        head = layout.heads.get(task or "", {})
        self.has_head = task is not None and all(self._find(name) is not None for name in head)
        self._needed = {**layout.body, **(head if self.has_head else {})}
        self._counted = {self._find(name) for name in self._needed}

    def check(self) -> None:
        """Raises `Invalid` when a tensor is missing, has another shape than the config gives it, or holds no floats."""
        for name, shape in self._needed.items():
            found = self._find(name)
            if found is None:
                raise _mismatch(f"the weights lack {self._layout.prefix}{name}")
            self._check_tensor(found, shape)
        for shapes in (self._layout.optional, self._layout.computed, self._layout.buffers, self._twins()):
            for name, shape in shapes.items():
                if (found := self._find(name)) is not None:
                    self._check_tensor(found, shape)
        self._check_no_more_layers()

    def parameters(self) -> int:
        """How many numbers the network has, those of tied tensors once."""
        layout = self._layout
        extras = {name: shape for name, shape in layout.optional.items() if self._find(name) not in self._counted}
        there = {name: shape for name, shape in extras.items() if self._find(name) is not None}
        return sum(math.prod(shape) for shapes in (self._needed, layout.computed, there) for shape in shapes.values())

    def _twins(self) -> Shapes:
        """Other names of tensors that are tied, which a file may hold too."""
        same = self._layout.same
        return {twin: self._needed[name] for name, twins in same.items() if name in self._needed for twin in twins}

    def _find(self, name: str) -> str | None:
        """The name in the file of a tensor: with the prefix or without, the present name or an older one."""
        for candidate in (name, *self._layout.same.get(name, ())):
            for whole in (f"{self._layout.prefix}{candidate}", candidate):
                old = whole.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                for known in (whole, old):
                    if known in self._tensors:
                        return known
        return None

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if self._tensors[name].shape != shape:
            raise _mismatch(f"by config.json {name} has the shape {list(shape)}, in the weights it has another")
        if DTYPES[self._tensors[name].dtype].infinite is None:
            raise _mismatch(f"{name} holds no floats")

    def _check_no_more_layers(self) -> None:
        for stem, layers in self._layout.stacks.items():
            for name in self._tensors:
                rest = name.removeprefix(self._layout.prefix)
                number = rest[len(stem) :].partition(".")[0] if rest.startswith(stem) else "0"
                if not number.isdecimal() or int(number[:6]) >= layers:
                    raise _mismatch(f"by config.json there are {layers} layers, in the weights there are more")


def _mismatch(fault: str) -> Invalid:
    return Invalid(f"config.json and the weights disagree: {fault}.", code="CONFIG_MISMATCH")
