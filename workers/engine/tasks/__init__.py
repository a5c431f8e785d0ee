"""Tasks: what a network is for. Rows in, batches out; the loss to train by and the figures to judge by."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.tasks.text_classification import TextClassification

Batch: TypeAlias = dict[str, Tensor]


class Task(Protocol):
    """Everything that the engine asks of a task."""

    warnings: list[tuple[str, str]]
    """Codes and messages of what a client should know about the data."""

    def rows(self, split: str) -> int:
        """How many rows a split has."""

    def batches(self, split: str, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All rows once, in batches of like length; shuffled where a generator is given."""

    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """The first `rows` rows of the calibration split, or else of a shuffled train."""

    def loss(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Mean loss over the batch."""

    def evaluate(self, network: PreTrainedModel, split: str) -> dict[str, Any]:
        """Predictions and references of a split, for `evaluation`."""


TASKS: dict[str, Callable[[Path, Path, list[str], int, int], Task]] = {"text-classification": TextClassification}
"""`(data set folder, model folder, labels in order, max_length, seed)` to a task."""
