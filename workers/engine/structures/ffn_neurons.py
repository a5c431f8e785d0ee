"""FFN neurons: an intermediate neuron owns its row of the first projection and its column of the second."""

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.structures.structure import Gate, Group, gate_inputs, keep_columns, keep_rows, parts_of


class FfnNeurons:
    """One group per layer. Cutting a neuron saves 2 * hidden weights."""

    name = "ffn_neurons"

    def groups(self, network: PreTrainedModel) -> list[Group]:
        """The neurons of every layer."""
        return [
            Group(index, layer.ffn_in.out_features, parts_of((layer.ffn_in,), layer.ffn_out))
            for index, layer in enumerate(family_of(network).layers(network))
        ]

    def gate(self, network: PreTrainedModel, group: int, gate: Gate) -> list[RemovableHandle]:
        """Scales each neuron's activation."""
        layer = family_of(network).layers(network)[group]
        return [gate_inputs(layer.ffn_out, layer.ffn_out.in_features, gate)]

    def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
        """Slices both projections."""
        family = family_of(network)
        for layer, kept in zip(family.layers(network), keep, strict=True):
            index = kept.nonzero().flatten()
            keep_rows(layer.ffn_in, index)
            keep_columns(layer.ffn_out, index)
        family.refresh(network)
