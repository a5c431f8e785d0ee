"""Names and shapes of tensors, as data: what every layout is put together from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Values: TypeAlias = Mapping[str, Any]
"""A checked config, every size filled in."""
_DEFAULT_LABELS = 2


@dataclass(frozen=True)
class Layout:
    """The tensors of one network. Names of the body stand without the prefix that a network with a head adds."""

    prefix: str
    body: Shapes
    stacks: dict[str, int]
    """Name of a list of layers to how many there are."""
    heads: dict[str, Shapes]
    """Task to the tensors of its head, whole names: a head that lacks any counts as untrained."""
    optional: Shapes = field(default_factory=dict)
    """Tensors that may be missing, with their whole names or those of the body."""
    computed: Shapes = field(default_factory=dict)
    """Parameters of the body that a file may leave out, as they follow from the config."""
    buffers: Shapes = field(default_factory=dict)
    """Tensors of the body that may be missing and are no parameters."""
    same: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """A tensor's name to other names, whole or of the body, under which files hold the very same one."""


def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    """A linear layer: the weight's rows are its outputs."""
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def norm(name: str, size: int, *, bias: bool = True) -> Shapes:
    """A layer norm, or without a bias a norm by the root mean square."""
    return {f"{name}.weight": (size,), **({f"{name}.bias": (size,)} if bias else {})}


def table(name: str, rows: int, width: int) -> Shapes:
    """An embedding table; none where it has no rows."""
    return {f"{name}.weight": (rows, width)} if rows else {}


def repeated(stem: str, layers: int, layer: Shapes) -> Shapes:
    """The tensors of layers that are alike."""
    return {f"{stem}{index}.{name}": shape for index in range(layers) for name, shape in layer.items()}


def labels_of(values: Values) -> int:
    """Rows of a classifier; a config that names no labels means two."""
    return len(values["id2label"]) if values.get("id2label") else _DEFAULT_LABELS


def tied(values: Values, output: str, table_name: str, *, default: bool = True) -> dict[str, tuple[str, ...]]:
    """`Layout.same` of an output layer that is the embedding table, as the config has it."""
    given = values.get("tie_word_embeddings")
    return {table_name: (output,)} if (default if given is None else given) else {}
