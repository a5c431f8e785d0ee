"""FFN neurons: a neuron owns its row of the first projections, gated or not, and its column of the last."""

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.families.family import Layer
from workers.engine.families.sizes import refresh
from workers.engine.slicing import columns_of, keep_columns, keep_rows, runs
from workers.engine.structures.structure import Gate, Group, column_part, gate_units, row_parts


class FfnNeurons:
    """One group per layer."""

    name = "ffn_neurons"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The neurons of every layer that has any."""
        return [
            Group(
                layer=layer.index,
                units=columns_of(layer.ffn_out),
                parts=(*(part for first in layer.ffn_in for part in row_parts(first)), column_part(layer.ffn_out)),
                stack=layer.side.stack.name,
                outputs=(layer.ffn_out,),
            )
            for layer in _layers(network)
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales each neuron's activation."""
        return gate_units(network, self.groups(network)[group], gate)

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices the projections."""
        for layer, kept in zip(_layers(network), keep, strict=True):
            for first in layer.ffn_in:
                keep_rows(first, runs(kept, 1))
            keep_columns(layer.ffn_out, runs(kept, 1))
        refresh(network)


def _layers(network: PreTrainedModel) -> list[Layer]:
    return [layer for layer in family_of(network).layers(network) if layer.ffn_in]
