"""Labels: names that the head knows, or integers that index them."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from workers.engine.failures import EngineError


class Labels:
    """The labels of a head, in the order of its outputs."""

    def __init__(self, network: PreTrainedModel) -> None:
        names: dict[Any, str] = network.config.id2label or {}
        self.names: list[str] = [names[index] for index in range(len(names))]
        self._indices = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, label: int | str) -> int:
        """The output that a label means; raises EngineError LABEL_UNKNOWN."""
        index = label if isinstance(label, int) else self._indices.get(label, -1)
        if not 0 <= index < len(self):
            raise EngineError("LABEL_UNKNOWN", "a row has a label that the model's head does not know", blame="user")
        return index


def fresh_labels(found: Iterable[int | str], known: Sequence[str]) -> list[str] | None:
    """Labels for a fresh head: names sorted, or `LABEL_0` to the highest integer; None where `known` ones fit.

    Integers index the known labels. Raises EngineError DATA_UNUSABLE where there is nothing to tell apart.
    """
    different = set(found)
    names = sorted(label for label in different if isinstance(label, str))
    integers = [label for label in different if isinstance(label, int)]
    if len(different) < 2 or (names and integers):
        raise EngineError("DATA_UNUSABLE", "labels must be all names or all integers, and at least two", blame="user")
    if known and (set(names) <= set(known) if names else max(integers) < len(known)):
        return None
    return names or [f"LABEL_{index}" for index in range(max(integers) + 1)]
