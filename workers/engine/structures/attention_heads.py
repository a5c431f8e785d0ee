"""Attention heads (Michel et al., 2019): a head owns its rows of query, key and value and its columns of the output."""

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of, head_size_of
from workers.engine.structures.structure import Gate, Group, gate_inputs, keep_columns, keep_rows, parts_of


class AttentionHeads:
    """One group per layer. Cutting a head saves 4 * hidden * head size weights and its share of the attention."""

    name = "attention_heads"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The heads of every layer."""
        size = head_size_of(network)
        return [
            Group(index, layer.heads_out.in_features // size, parts_of(layer.heads_in, layer.heads_out))
            for index, layer in enumerate(family_of(network).layers(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales each head's output."""
        layer = family_of(network).layers(network)[group]
        return [gate_inputs(layer.heads_out, layer.heads_out.in_features // head_size_of(network), gate)]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices the four projections."""
        size, family = head_size_of(network), family_of(network)
        for layer, kept in zip(family.layers(network), keep, strict=True):
            index = kept.repeat_interleave(size).nonzero().flatten()
            for linear in layer.heads_in:
                keep_rows(linear, index)
            keep_columns(layer.heads_out, index)
        family.refresh(network)
