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

    def sample_size(self, rows: int) -> int:
        """How many rows `sample` gives when asked for `rows`."""

    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """Up to `rows` rows of train, or where it is missing of calibration, chosen by the seed."""

    def loss(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Mean loss over the batch."""

    def evaluate(self, network: PreTrainedModel, split: str) -> dict[str, Any]:
        """Predictions and references of a split, for `evaluation`."""


TASKS: dict[str, Callable[[Path, Path, PreTrainedModel, int, int], Task]] = {"text-classification": TextClassification}
"""`(data set folder, model folder, network with its head, max_length, seed)` to a task."""
