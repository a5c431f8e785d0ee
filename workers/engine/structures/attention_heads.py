"""Attention heads (Michel et al., 2019): a head owns its rows of query, key and value and its columns of the output.

Where key-value heads are shared, a unit is a key-value head with all the query heads that read it.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.families.family import LiveAttention, Side
from workers.engine.families.sizes import head_units, refresh
from workers.engine.slicing import columns_of, keep_columns, keep_rows, rows_of, runs
from workers.engine.structures.structure import Gate, Group, Part, column_part, gate_units, row_parts


@dataclass(frozen=True)
class _Heads:
    """Attentions that lose the same heads, and the table of relative positions whose columns go with them."""

    side: Side
    layer: int
    attentions: tuple[LiveAttention, ...]
    bias: nn.Embedding | None = None

    def group(self) -> Group:
        """As the criteria see it."""
        parts: list[Part] = [] if self.bias is None else [column_part(self.bias)]
        for attention in self.attentions:
            for projection in attention.inputs:
                parts += row_parts(projection, attention.paths.fused)
            parts.append(column_part(attention.output))
        return Group(
            layer=self.layer,
            units=head_units(self.attentions[0]),
            parts=tuple(parts),
            stack=self.side.stack.name,
            place=self.attentions[0].paths.module,
            outputs=tuple(attention.output for attention in self.attentions),
        )


class AttentionHeads:
    """One group per attention; where layers share a table of relative positions, one for all layers."""

    name = "attention_heads"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The heads of every layer."""
        return [heads.group() for heads in _all_heads(network)]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales each head's output."""
        return gate_units(network, self.groups(network)[group], gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices the projections."""
        for heads, kept in zip(_all_heads(network), keep, strict=True):
            for attention in heads.attentions:
                fused = attention.paths.fused
                for projection in attention.inputs:
                    size = rows_of(projection) // (len(kept) * fused)
                    keep_rows(projection, runs(kept, size, fused))
                keep_columns(attention.output, runs(kept, columns_of(attention.output) // len(kept)))
            if heads.bias is not None:
                keep_columns(heads.bias, runs(kept, 1))
        refresh(network)


def _all_heads(network: PreTrainedModel) -> list[_Heads]:
    found: list[_Heads] = []
    for side in family_of(network).sides(network):
        if side.position_bias is None:
            found += [_Heads(side, layer.index, (part,)) for layer in side.layers for part in layer.attentions]
            continue
        # A table of positions with a plane for each head is handed on from layer to layer, to cross-attention too.
        parts = [part for layer in side.layers for part in layer.attentions]
        found += [
            _Heads(
                side,
                layer=-1,
                attentions=tuple(part for part in parts if part.paths is paths),
                bias=side.position_bias if number == 0 else None,
            )
            for number, paths in enumerate(side.stack.attentions)
        ]
    return found
