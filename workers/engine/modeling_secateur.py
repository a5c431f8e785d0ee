"""Networks whose sizes no stock config can express, for `trust_remote_code=True`.

A stock config knows one width for all layers. Here `config.json` says under `secateur_sizes` how this network differs
from the stock one that its other keys describe:

    {"parameters": {"bert.encoder.layer.0.intermediate.dense.weight": [1024, 384], …},
     "attributes": {"bert.encoder.layer.0.attention.self": {"num_attention_heads": 6, …}, …},
     "absent": {"bert.encoder.layer.1.attention.self": ["attention_weights"], …},
     "tables": {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias": [32, 8], …}}

The stock class is built first, then parts that were dropped make way for `Absent`, tables that moved are put in their
new places, parameters get these shapes and modules these numbers; its forward pass runs unchanged. This file stands
alone: it imports only torch and transformers, and travels with the weights.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

PREFIX = "Secateur"
IDLE = frozenset({"hidden_size", "intermediate_size", "d_model", "embed_dim"})
"""Numbers that modules keep without computing with them."""
FLAGS = frozenset({"has_relative_attention_bias"})
"""What else they compute with and a cut can change: whether an attention holds the table of relative positions."""
Sizes = dict[str, dict[str, Any]]


class Absent(nn.Module):
    """Stands where a part was dropped and gives zeros of the shape of the states that it is given.

    Of a part with several results `beside` names those after the first: each is the argument of that name, or None.
    """

    def __init__(self, beside: Iterable[str] = ()) -> None:
        super().__init__()
        self.beside = tuple(beside)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, alone or first of several values."""
        zeros = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return (zeros, *(kwargs.get(name) for name in self.beside)) if self.beside else zeros


def fit(network: PreTrainedModel, sizes: Sizes) -> None:
    """Gives a freshly built `network` the sizes in `sizes`, in place.

    Parameters that change hold no values afterwards: load the weights next. Raises AttributeError where `sizes` names a
    part that the network does not have.
    """
    for path, beside in sizes.get("absent", {}).items():
        replace(network, path, Absent(beside))
    for path, (rows, columns) in sizes.get("tables", {}).items():
        replace(network, path, nn.Embedding(rows, columns))
    for path, shape in sizes["parameters"].items():
        owner, _, name = path.rpartition(".")
        module = network.get_submodule(owner)
        old = getattr(module, name)
        setattr(module, name, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
    for path, numbers in sizes["attributes"].items():
        module = network.get_submodule(path)
        for name, number in numbers.items():
            getattr(module, name)
            setattr(module, name, tuple(number) if isinstance(number, list) else number)
    network.tie_weights()


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`, whatever was there. Raises AttributeError where nothing is above it."""
    owner, _, name = path.rpartition(".")
    setattr(network.get_submodule(owner), name, module)


def differences(network: PreTrainedModel, stock: PreTrainedModel) -> Sizes:
    """What `fit` has to do to `stock`, which is what the config alone builds, to make it of the sizes of `network`."""
    modules = dict(network.named_modules(remove_duplicate=False))
    usual = dict(stock.named_modules(remove_duplicate=False))
    tables = {
        path: list(module.weight.shape)
        for path, module in modules.items()
        if path not in usual and isinstance(module, nn.Embedding)
    }
    shapes = {name: list(parameter.shape) for name, parameter in stock.named_parameters(remove_duplicate=False)}
    shapes |= {f"{path}.weight": shape for path, shape in tables.items()}
    parameters = {
        name: list(parameter.shape)
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if list(parameter.shape) != shapes.get(name)
    }
    absent = {path: list(module.beside) for path, module in modules.items() if isinstance(module, Absent)}
    attributes = {}
    for path, module in modules.items():
        if path in absent or path in tables:
            continue
        before = numbers_of(usual[path])
        changed = {name: value for name, value in numbers_of(module).items() if before.get(name) != value}
        if changed:
            attributes[path] = changed
    return {"parameters": parameters, "attributes": attributes, "absent": absent, "tables": tables}


def numbers_of(module: nn.Module) -> dict[str, Any]:
    """The plain numbers that a module keeps beside its weights and computes with: head counts, widths, scales."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if name not in IDLE
        if name in FLAGS
        or type(value) in (int, float)
        or (isinstance(value, tuple) and all(type(item) is int for item in value))
    }


@cache
def sized(stock: Any) -> type[PreTrainedModel]:
    """The class that builds `stock` with the sizes of `config.secateur_sizes`."""

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        stock.__init__(self, config, *arguments, **options)
        fit(self, config.secateur_sizes)

    # A table of positions that a stock class computes from its width has to come from the weights here.
    members = {"__init__": build, "__module__": __name__, "__doc__": stock.__doc__, "_keys_to_ignore_on_save": None}
    return type(PREFIX + stock.__name__, (stock,), members)


def __getattr__(name: str) -> Any:
    """The class `Secateur…` for the stock class of transformers with the rest of the name."""
    stock: Any = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return sized(stock)  # type: ignore[arg-type] # classes are hashable


def stock_twin(network: PreTrainedModel) -> PreTrainedModel:
    """The network that the config alone describes, without storage."""
    stock = next(kind for kind in type(network).__mro__ if not kind.__name__.startswith(PREFIX))
    with torch.device("meta"):
        twin: PreTrainedModel = stock(network.config)
    return twin
