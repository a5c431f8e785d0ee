"""Cutting rows and columns out of modules in place, whichever way round they store their weights."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def projections_in(module: nn.Module) -> list[nn.Module]:
    """Every Linear and Conv1D in a module, in the order of their names."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]


def row_dim(module: nn.Module) -> int:
    """The dimension of the weight that belongs to outputs; GPT-2's Conv1D stores inputs first."""
    return 1 if isinstance(module, Conv1D) else 0


def column_dim(module: nn.Module) -> int:
    """The dimension of the weight that belongs to inputs; of an embedding, to its features."""
    return 0 if isinstance(module, Conv1D) else 1


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a module that has one."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def rows_of(module: nn.Module) -> int:
    """How many outputs a projection has."""
    return weight_of(module).shape[row_dim(module)]


def columns_of(module: nn.Module) -> int:
    """How many inputs a projection has."""
    return weight_of(module).shape[column_dim(module)]


def matrix_of(module: nn.Module) -> Tensor:
    """The weight as (outputs, inputs); shares its memory."""
    weight = weight_of(module)
    return weight.T if isinstance(module, Conv1D) else weight


def keep_rows(module: nn.Module, index: Tensor) -> None:
    """Cuts outputs of a projection, with their biases, or features of a norm: `index` names those that stay."""
    _keep(module, "weight", index, row_dim(module))
    if getattr(module, "bias", None) is not None:
        _keep(module, "bias", index, 0)
    _count(module)


def keep_columns(module: nn.Module, index: Tensor) -> None:
    """Cuts inputs of a projection or features of an embedding: `index` names those that stay."""
    _keep(module, "weight", index, column_dim(module))
    _count(module)


def _keep(module: nn.Module, name: str, index: Tensor, dim: int) -> None:
    old = getattr(module, name)
    kept = old.detach().index_select(dim, index.to(old.device)).clone()
    setattr(module, name, nn.Parameter(kept, requires_grad=old.requires_grad))


def _count(module: Any) -> None:
    """Keeps the numbers that a module holds beside its weight true to it."""
    shape = module.weight.shape
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


def runs(kept: Tensor, size: int, fused: int = 1) -> Tensor:
    """Indices of the rows of kept units, each a run of `size`, in each of `fused` projections that lie end to end."""
    index = kept.repeat_interleave(size).nonzero().flatten()
    offsets = torch.arange(fused) * len(kept) * size
    return (offsets[:, None] + index).flatten()


def by_input(module: nn.Module, table: Tensor) -> Tensor:
    """Turns a table of the weight's shape so that its columns are inputs, and back."""
    return table.T if isinstance(module, Conv1D) else table
