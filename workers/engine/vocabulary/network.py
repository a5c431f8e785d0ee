"""The network's side of a smaller vocabulary: embeddings, heads over the vocabulary, and every id in its configs."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from workers.engine.vocabulary.ids import Renumber, holds_ids, renumbered

Table: TypeAlias = tuple[nn.Module, str, Tensor]
"""A tensor with one entry for each token, its owner and its name there."""

SIZES = ("vocab_size", "decoder_vocab_size")
"""Config keys; the second is Marian's."""


@torch.no_grad()
def cut_vocabulary(network: PreTrainedModel, kept: Tensor) -> None:
    """Keeps the tokens `kept`, int64 of (kept tokens,), ascending old ids; a token's new id is its position there.

    In place: embeddings and heads over the vocabulary with their biases, tied ones once; ids and sizes in configs. Ids
    beyond the embeddings, of tokens that the network never knew, stay beyond them. Raises ValueError where the padding
    token would be gone or get another id in a network whose positions count from that id.
    """
    rows = _rows_of(network)
    index = kept[kept < rows].cpu()
    renumber: Renumber = {old: new for new, old in enumerate(kept.tolist())}.get
    tables = list(_tables(network, rows))
    _check_positions(network, tables, renumber)
    sliced: dict[int, Tensor] = {}
    for owner, name, table in tables:
        if id(table) not in sliced:
            sliced[id(table)] = _slice(table, index.to(table.device), rows)
        setattr(owner, name, sliced[id(table)])
    for module in network.modules():
        _fix_module(module, rows, len(index), renumber)
    generation = getattr(network, "generation_config", None)
    for settings in (network.config, generation):
        if settings is not None:
            _fix_settings(vars(settings), rows, len(index), renumber)


def _rows_of(network: PreTrainedModel) -> int:
    embeddings = network.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings.num_embeddings


def _tables(network: PreTrainedModel, rows: int) -> Iterator[Table]:
    """Embeddings, heads over the vocabulary, whatever is tied to either, and biases of heads that are not their own.

    Heads of masked language models own their bias next to the projection, as no simple layer does; BART and Marian
    add a buffer of (1, tokens).
    """
    ends = {id(tensor) for module in _ends(network) for tensor in module.parameters() if tensor.shape[0] == rows}
    for module in network.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            of_head = name == "bias" and tensor.shape == (rows,) and any(True for _ in module.children())
            if id(tensor) in ends or of_head or (name == "final_logits_bias" and tensor.shape == (1, rows)):
                yield module, name, tensor


def _ends(network: PreTrainedModel) -> Iterator[nn.Module]:
    """What maps tokens to vectors and vectors to tokens, in every part that has such."""
    for module in network.modules():
        if isinstance(module, PreTrainedModel):
            yield module.get_input_embeddings()
            if (head := module.get_output_embeddings()) is not None:
                yield head


def _check_positions(network: PreTrainedModel, tables: list[Table], renumber: Renumber) -> None:
    """RoBERTa numbers positions from its padding id on, so that its position table has a padding row, too."""
    owners, padding = {id(owner) for owner, _, _ in tables}, network.config.pad_token_id
    for module in network.modules():
        positions = isinstance(module, nn.Embedding) and id(module) not in owners and module.padding_idx is not None
        if positions and module.padding_idx == padding and renumber(padding) != padding:
            raise ValueError("positions count from the id of the padding token, which has to stay")


def _slice(table: Tensor, index: Tensor, rows: int) -> Tensor:
    cut = table.index_select(0 if len(table) == rows else 1, index)
    return nn.Parameter(cut, requires_grad=table.requires_grad) if isinstance(table, nn.Parameter) else cut


def _fix_module(module: nn.Module, rows: int, size: int, renumber: Renumber) -> None:
    """Numbers that modules keep beside their weights."""
    numbers: dict[str, Any] = vars(module)
    cut = False
    if isinstance(module, nn.Embedding):
        cut = len(module.weight) != module.num_embeddings
        module.num_embeddings = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features = len(module.weight)
    if isinstance(numbers.get("padding_idx"), int) and (cut or not isinstance(module, nn.Embedding)):
        numbers["padding_idx"] = renumbered(numbers["padding_idx"], renumber)
    if numbers.get("vocab_size") == rows:
        numbers["vocab_size"] = size


def _fix_settings(settings: dict[str, Any], rows: int, size: int, renumber: Renumber) -> None:
    for key, value in settings.items():
        if holds_ids(key):
            settings[key] = renumbered(value, renumber)
        elif key in SIZES and value == rows:
            settings[key] = size
        elif isinstance(value, PreTrainedConfig):
            _fix_settings(vars(value), rows, size, renumber)
        elif isinstance(value, dict):
            _fix_settings(value, rows, size, renumber)
