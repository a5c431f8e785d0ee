"""A network's parameters and FLOPs from the sizes that the door knows, before and after cuts.

Heads and neurons are counted, not looked at: which ones go does not matter to either figure. Biases and norms, about a
thousandth of a network, go with the rest that cuts leave.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from service.catalog import family_of
from service.resolve.cuts import stacks_of
from service.resolve.order import Order
from service.specs import Cut, Target
from service.specs.rounding import nearest
from service.tables import Model

WORDED = frozenset({"causal-lm", "masked-lm", "translation"})
"""Tasks whose networks end in a score for every token of the vocabulary."""

TOLERANCE = 0.01
"""Relative error of figures from sizes: biases, norms and what a vocabulary's padding takes."""

_GATED = frozenset({"llama", "qwen2", "qwen3", "mistral"})
_LAYERS_SHARED = frozenset({"albert"})
_WIDTHS = (16, 32, 48, 64, 80, 96, 128, 192, 256)
_MOST_UNEXPLAINED = 0.25


@dataclass(frozen=True)
class Stack:
    """One stack of layers: its heads and neurons, layer by layer, and which share of the layers' parts is left."""

    name: str
    heads: tuple[float, ...]
    neurons: tuple[float, ...]
    head_width: float
    attention_left: float = 1.0
    neurons_left: float = 1.0


@dataclass(frozen=True)
class Anatomy:
    """Sizes of one network. Counts are fractions where a cut takes from all layers together."""

    stacks: tuple[Stack, ...]
    hidden: float
    vocabulary: float
    keys_per_head: float
    """Below 1 where query heads share keys."""
    matrices: int
    """Of a neuron: one more where it is gated."""
    worded: bool
    tables: int
    """Times that the vocabulary's rows are stored: twice where the output has its own."""
    layers_shared: bool
    rest: float
    """Parameters that the sizes do not explain."""

    @property
    def parameters(self) -> float:
        """Tied ones counted once."""
        layers = sum(self._head_cost(s) * _heads(s) + self._neuron_cost() * _neurons(s) for s in self.stacks)
        copies = len(self.stacks[0].heads) if self.layers_shared else 1
        return layers / copies + self.tables * self.vocabulary * self.hidden + self.rest

    def flops(self, tokens: float) -> float:
        """Of one sequence of so many tokens, for an encoder-decoder on both sides; a multiply-add is two."""
        layers = sum(self._head_cost(s) * _heads(s) + self._neuron_cost() * _neurons(s) for s in self.stacks)
        attended = sum(_attentions(s) * _heads(s) * s.head_width for s in self.stacks) * 2 * tokens
        words = self.vocabulary * self.hidden if self.worded else 0.0
        return 2 * tokens * (layers + attended + words)

    def _head_cost(self, stack: Stack) -> float:
        return _attentions(stack) * 2 * (1 + self.keys_per_head) * self.hidden * stack.head_width

    def _neuron_cost(self) -> float:
        return self.matrices * self.hidden


def _attentions(stack: Stack) -> int:
    """A decoder that has an encoder beside it looks at both."""
    return 2 if stack.name == "decoder" else 1


def _heads(stack: Stack) -> float:
    return sum(stack.heads) * stack.attention_left


def _neurons(stack: Stack) -> float:
    return sum(stack.neurons) * stack.neurons_left


def anatomy_of(model: Model) -> Anatomy | None:
    """The sizes of a model; None where they do not explain its parameters, as with families not known here."""
    structure = model.structure
    if not structure.get("attention_heads") or not structure.get("ffn_width") or not structure.get("hidden_size"):
        return None
    candidates = [found for found in _candidates(model) if found is not None]
    best = min(candidates, key=lambda found: abs(model.parameters - found.parameters))
    unexplained = model.parameters - best.parameters
    if abs(unexplained) > _MOST_UNEXPLAINED * model.parameters:
        return None
    return replace(best, rest=unexplained)


def _candidates(model: Model) -> Iterator[Anatomy]:
    """What the sizes leave open: how wide a head is, once heads were cut, and whether the output has its own table."""
    sizes, family = model.structure, model.family
    hidden, keys = sizes["hidden_size"], sizes.get("key_value_heads") or sizes["attention_heads"]
    told = model.job_id is None and family_of(family).head_width is None
    for width in (None,) if told else (None, *_WIDTHS):
        stacks = [_stack("encoder", sizes["attention_heads"], sizes["ffn_width"], hidden, width)]
        if sizes.get("decoder_attention_heads"):
            decoder = sizes["decoder_attention_heads"], sizes["decoder_ffn_width"]
            stacks.append(_stack("decoder", *decoder, hidden, width))
        for tables in (1, 2) if model.task in WORDED else (1,):
            for matrices in (2, 3) if family == "t5" else ((3,) if family in _GATED else (2,)):
                yield Anatomy(
                    stacks=tuple(stacks),
                    hidden=hidden,
                    vocabulary=sizes.get("vocabulary") or 0,
                    keys_per_head=sum(keys) / max(1, sum(sizes["attention_heads"])),
                    matrices=matrices,
                    worded=model.task in WORDED,
                    tables=tables,
                    layers_shared=family in _LAYERS_SHARED,
                    rest=0.0,
                )


def _stack(name: str, heads: list[int], neurons: list[int], hidden: float, width: float | None) -> Stack:
    """With heads as wide as an uncut network has them, unless a width is given."""
    return Stack(name, tuple(heads), tuple(neurons), width or hidden / max(1, *heads))


def after(order: Order, whole: Anatomy) -> tuple[Anatomy, Anatomy]:
    """The least and the most that the order's cuts can leave; they differ where the data or a penalty decide."""
    target = order.spec.pruning.target
    least = most = whole if target is None else _to_target(whole, target)
    for cut in order.spec.pruning.cuts:
        if cut.structure == "vocabulary":
            least = replace(least, vocabulary=0.0)
        elif cut.threshold is not None:
            least = _cut(least, cut, order, 1.0)
        else:
            least, most = (_cut(side, cut, order, cut.share) for side in (least, most))
    return least, most


def _to_target(whole: Anatomy, target: Target) -> Anatomy:
    stacks = (replace(s, attention_left=target.ratio, neurons_left=target.ratio) for s in whole.stacks)
    return replace(whole, stacks=tuple(stacks))


def _cut(whole: Anatomy, cut: Cut, order: Order, share: float) -> Anatomy:
    if cut.structure == "weights":
        return whole
    if cut.structure == "hidden_size":
        left = _left(whole.hidden, share)
        return replace(whole, hidden=left, rest=whole.rest * left / whole.hidden)
    taken = stacks_of(cut, order.family)
    stacks = tuple(_cut_stack(s, cut, order.model, share) if s.name in taken else s for s in whole.stacks)
    return replace(whole, stacks=stacks)


def _cut_stack(stack: Stack, cut: Cut, model: Model, share: float) -> Stack:
    layers = _left(len(stack.heads), share) / max(1, len(stack.heads))
    attention = layers if cut.structure in ("layers", "attention_layers") else 1.0
    neurons = layers if cut.structure in ("layers", "ffn_layers") else 1.0
    stack = replace(
        stack,
        attention_left=min(stack.attention_left, attention),
        neurons_left=min(stack.neurons_left, neurons),
    )
    if cut.structure == "attention_heads":
        shared = stack.name == "encoder" and model.structure.get("key_value_heads")
        units = shared or model.structure[_key(stack, "attention_heads")]
        return replace(stack, heads=_fewer(stack.heads, units, share, cut.scope))
    if cut.structure == "ffn_neurons":
        units = model.structure[_key(stack, "ffn_width")]
        return replace(stack, neurons=_fewer(stack.neurons, units, share, cut.scope))
    return stack


def _key(stack: Stack, sizes: str) -> str:
    return f"decoder_{sizes}" if stack.name == "decoder" else sizes


def _fewer(now: tuple[float, ...], units: list[int], share: float, scope: str) -> tuple[float, ...]:
    """Heads or neurons that are left of each layer; of a global cut the mean."""
    if scope == "global":
        left = [size * (1 - min(share, 1 - len(units) / max(1, sum(units)))) / max(1, size) for size in units]
    else:
        left = [_left(size, share) / max(1, size) for size in units]
    first = [size * kept for size, kept in zip(_whole(now, units), left, strict=True)]
    return tuple(min(size, kept) for size, kept in zip(now, first, strict=True))


def _whole(now: tuple[float, ...], units: list[int]) -> list[float]:
    """What the model came with, per layer; query heads where units are the key heads that they share."""
    per_unit = max((size / unit for size, unit in zip(now, units, strict=True) if unit), default=1.0)
    return [unit * max(1.0, round(per_unit)) for unit in units]


def _left(size: float, share: float) -> float:
    """One always stays."""
    return size - min(nearest(size * share), size - 1) if size > 1 else size
