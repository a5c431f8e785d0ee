"""Where each family keeps its tensors, and of which shapes, as data: weights must fit the config before they are kept.

A dimension is one letter: V vocabulary, P positions, T token types, H hidden, F feed-forward, L labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from service.errors import Invalid
from service.intake.safetensors import Tensor

Shapes = dict[str, str]


@dataclass(frozen=True)
class Layout:
    """The tensors of one family; a norm is a weight and a bias of H, in old files `gamma` and `beta`."""

    prefix: str
    layer: str
    """Name of the list of layers."""
    embeddings: Shapes
    linears: Shapes
    """Linear layers within a layer: the weight's dimensions, rows first; each has a bias of its rows."""
    norms: tuple[str, ...]
    head: Shapes
    """Linear layers of a text classifier, a pooler that it reads included: one that lacks any counts as untrained."""
    optional: Shapes = field(default_factory=dict)


_BERT_LAYER = {
    "attention.self.query": "HH",
    "attention.self.key": "HH",
    "attention.self.value": "HH",
    "attention.output.dense": "HH",
    "intermediate.dense": "FH",
    "output.dense": "HF",
}
_BERT_EMBEDDINGS = {"word_embeddings": "VH", "position_embeddings": "PH", "token_type_embeddings": "TH"}
_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")

LAYOUTS: dict[str, Layout] = {
    "bert": Layout(
        "bert.",
        "encoder.layer.",
        _BERT_EMBEDDINGS,
        _BERT_LAYER,
        _BERT_NORMS,
        head={"bert.pooler.dense": "HH", "classifier": "LH"},
        optional={"pooler.dense": "HH"},
    ),
    "roberta": Layout(
        "roberta.",
        "encoder.layer.",
        _BERT_EMBEDDINGS,
        _BERT_LAYER,
        _BERT_NORMS,
        head={"classifier.dense": "HH", "classifier.out_proj": "LH"},
        optional={"pooler.dense": "HH"},
    ),
    "distilbert": Layout(
        "distilbert.",
        "transformer.layer.",
        {"word_embeddings": "VH", "position_embeddings": "PH"},
        {
            "attention.q_lin": "HH",
            "attention.k_lin": "HH",
            "attention.v_lin": "HH",
            "attention.out_lin": "HH",
            "ffn.lin1": "FH",
            "ffn.lin2": "HF",
        },
        ("sa_layer_norm", "output_layer_norm"),
        head={"pre_classifier": "HH", "classifier": "LH"},
    ),
}


class Weights:
    """The tensors of a model, seen through its family's layout."""

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        self._layout, self._tensors = layout, tensors
        prefixed = f"{layout.prefix}embeddings.word_embeddings.weight" in tensors
        self._prefix = layout.prefix if prefixed else ""

    def has_head(self) -> bool:
        """Whether a trained classifier is among the tensors."""
        return all(f"{name}.weight" in self._tensors for name in self._layout.head)

    def check(self, sizes: Mapping[str, int], layers: int, labels: int | None) -> None:
        """Raises `Invalid` when a tensor is missing or has another shape than `sizes` (by letter) give it.

        `labels` is the classifier's rows, None when its head is not looked at.
        """
        for names, dimensions in self._expected(layers):
            self._check_tensor(names, tuple(sizes[letter] for letter in dimensions))
        if labels is not None:
            for name, dimensions in _linears("", self._layout.head):
                self._check_tensor((name,), tuple({**sizes, "L": labels}[letter] for letter in dimensions))
        self._check_no_more_layers(layers)

    def _expected(self, layers: int) -> Iterator[tuple[tuple[str, ...], str]]:
        layout, root = self._layout, self._prefix
        for name, dimensions in layout.embeddings.items():
            yield (f"{root}embeddings.{name}.weight",), dimensions
        yield from _norm(f"{root}embeddings.LayerNorm")
        for layer in range(layers):
            stem = f"{root}{layout.layer}{layer}."
            for name, dimensions in _linears(stem, layout.linears):
                yield (name,), dimensions
            for norm in layout.norms:
                yield from _norm(stem + norm)
        for name, dimensions in _linears(root, layout.optional):
            if name in self._tensors:
                yield (name,), dimensions

    def _check_tensor(self, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
        found = next((name for name in names if name in self._tensors), None)
        if found is None:
            raise _mismatch(f"the weights lack {names[0]}")
        if self._tensors[found].shape != shape:
            raise _mismatch(f"by config.json {names[0]} has the shape {list(shape)}, in the weights it has another")
        if not self._tensors[found].dtype.endswith(("F16", "F32", "F64")):
            raise _mismatch(f"{names[0]} holds no floats")

    def _check_no_more_layers(self, layers: int) -> None:
        stem = f"{self._prefix}{self._layout.layer}"
        for name in self._tensors:
            number = name[len(stem) :].partition(".")[0] if name.startswith(stem) else "0"
            if not number.isdecimal() or int(number[:6]) >= layers:
                raise _mismatch(f"by config.json there are {layers} layers, in the weights there are more")


def _linears(stem: str, linears: Shapes) -> Iterator[tuple[str, str]]:
    for name, dimensions in linears.items():
        yield f"{stem}{name}.weight", dimensions
        yield f"{stem}{name}.bias", dimensions[0]


def _norm(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    yield (f"{name}.weight", f"{name}.gamma"), "H"
    yield (f"{name}.bias", f"{name}.beta"), "H"


def _mismatch(fault: str) -> Invalid:
    return Invalid(f"config.json and the weights disagree: {fault}.", code="CONFIG_MISMATCH")
