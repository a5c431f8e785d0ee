"""What a job works on: the network, what it was before, the data, and which of its original parts are left."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group
from workers.engine.tasks import Task

Place = tuple[str, str, int]
"""Stack, place in a layer, and index of the original layer; -1 where a group spans several."""


@dataclass
class Anatomy:
    """What a network looked like before the first cut, and which of its layers are left in each stack.

    Ratios are shares of the original units, so that rounds add up to what was asked.
    """

    units: dict[str, dict[Place, int]]
    kept_layers: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, network: PreTrainedModel) -> "Anatomy":
        """The anatomy of an uncut network."""
        units = {
            name: {(*group.key, group.layer): group.units for group in STRUCTURES[name].groups(network)}
            for name in STRUCTURES
            if name != "weights"
        }
        layers = {stack: list(range(count)) for (stack, _, _), count in units["layers"].items()}
        return cls(units, layers)

    def original_units(self, structure: str, groups: list[Group]) -> list[int]:
        """Units that each of today's groups had at the start; of single weights, those of today's matrices."""
        if structure == "weights":
            return [group.units for group in groups]
        return [self.units[structure][(*group.key, self._original_layer(group))] for group in groups]

    def _original_layer(self, group: Group) -> int:
        kept = self.kept_layers.get(group.stack)
        return group.layer if group.layer < 0 or kept is None else kept[group.layer]

    def drop_layers(self, stack: str, kept: list[bool]) -> None:
        """Notes which of today's layers of a stack stay."""
        left = self.kept_layers[stack]
        self.kept_layers[stack] = [layer for layer, stays in zip(left, kept, strict=True) if stays]


@dataclass
class Subject:
    """The network under the knife and all that changes with it."""

    network: PreTrainedModel
    teacher: PreTrainedModel
    """The network before pruning, which reads the same tokens as `network`."""
    task: Task | None
    source: Path
    """Where the tokenizer that fits the network lies."""
    anatomy: Anatomy
    operations: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    """What made it smaller, in order: a structure and its masks, of the vocabulary none. Done again to the network that
    it was, they give one of the same make, down to the layout of its weights in memory."""

    def cut(self, structure: str, keep: list[Tensor]) -> None:
        """Cuts units of a structure off the network and takes note of it; see `Structure.cut`."""
        groups = STRUCTURES[structure].groups(self.network)
        STRUCTURES[structure].cut(self.network, keep)
        if structure == "layers":
            for group, mask in zip(groups, keep, strict=True):
                self.anatomy.drop_layers(group.stack, mask.tolist())
        if structure != "weights":  # these are set to zero and stay in their places
            self.operations.append((structure, keep))
