"""Hidden size: a dimension of the residual stream owns its features in everything that reads or writes the stream.

Widths of the stream are ranked over the whole network, as in Minitron (Muralidharan et al., 2024).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.sizes import hidden_size_of, refresh
from workers.engine.slicing import columns_of, keep_columns, keep_rows, rows_of, runs
from workers.engine.structures.structure import Gate, Group, Part, column_part, each_pass, row_parts

HEADS = frozenset({"classifier", "score", "qa_outputs", "lm_head", "out_proj", "decoder", "vocab_projector"})
"""Last projections of a network: their outputs are labels or words, even where there are as many as features."""


class HiddenSize:
    """One group for the whole network."""

    name = "hidden_size"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The dimensions of the residual stream."""
        parts: list[Part] = []
        for module in writers(network):
            parts += row_parts(module)
        parts += [column_part(module) for module in readers(network)]
        return [Group(layer=-1, units=hidden_size_of(network), parts=tuple(parts))]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales every dimension wherever the stream is normalised."""
        return [each_pass(network, gate), *(norm.register_forward_hook(_scale(gate)) for norm in norms(network))]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices everything that touches the stream; norms keep their scale."""
        index, reading, writing = runs(keep[0], 1), list(readers(network)), list(writers(network))
        for module in writing:
            keep_rows(module, index)
        for module in reading:
            keep_columns(module, index)
        network.tie_weights()
        _keep_scale(network)
        refresh(network)


@torch.no_grad()
def _keep_scale(network: Any) -> None:
    """T5 divides its last states by the root of their width, which the norm before makes up for."""
    old, new = getattr(network, "model_dim", None), hidden_size_of(network)
    if old is not None and getattr(network.config, "scale_decoder_outputs", False):
        network.decoder.final_layer_norm.weight.mul_((new / old) ** 0.5)
    if old is not None:
        network.model_dim = new


def norms(network: PreTrainedModel) -> list[nn.Module]:
    """Normalisations of the stream."""
    return [module for module in writers(network) if _is_norm(module)]


def writers(network: PreTrainedModel) -> Iterator[nn.Module]:
    """Modules whose outputs are the stream: projections into it, and its norms."""
    hidden = hidden_size_of(network)
    for layer in family_of(network).layers(network):
        yield from (attention.output for attention in layer.attentions)
        yield from layer.present((layer.side.stack.ffn_out,))
        yield from layer.norms(hidden)
    for name, module in _outside(network):
        if _is_norm(module):
            if len(module.weight) == hidden:
                yield module
        elif isinstance(module, nn.Linear | Conv1D) and rows_of(module) == hidden and name not in HEADS:
            yield module


def readers(network: PreTrainedModel) -> Iterator[nn.Module]:
    """Modules whose inputs are the stream, and embeddings, whose features become it."""
    hidden = hidden_size_of(network)
    for layer in family_of(network).layers(network):
        for attention in layer.attentions:
            yield from attention.inputs
        yield from layer.ffn_in
    for _, module in _outside(network):
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding) and columns_of(module) == hidden:
            yield module


def _outside(network: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Last part of the name and module of everything with a weight that lies in no transformer layer."""
    inside = {part for layer in family_of(network).layers(network) for part in layer.module.modules()}
    for name, module in network.named_modules():
        if module not in inside and isinstance(getattr(module, "weight", None), nn.Parameter):
            if isinstance(module, nn.Conv1d):
                raise EngineError("MODEL_UNUSABLE", "hidden_size cannot be cut through a convolution", blame="user")
            yield name.rpartition(".")[2], module


def _is_norm(module: Any) -> bool:
    return isinstance(module.weight, Tensor) and module.weight.dim() == 1


def _scale(gate: Gate) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(_norm: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        if output.dim() < 3:  # a table, of relative positions say, that belongs to no row
            return output
        return output * gate.open(len(output), output)[:, None, :]

    return hook
