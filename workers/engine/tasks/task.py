"""What every task has to do: rows in, batches out; the loss to train by and the figures to judge by."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from workers.engine.evaluation import Evaluation

Batch: TypeAlias = dict[str, Tensor]

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"})
"""Names in a batch that the network takes; all others are the task's own."""


@dataclass(frozen=True)
class Settings:
    """How rows become batches. Lengths in tokens."""

    max_length: int
    seed: int = 0
    stride: int | None = None
    """Overlap of the windows of question answering; None is half of `max_length`."""
    beams: int = 4
    """Width of the beam search of translation."""
    divisor: int = 1
    """How many times smaller batches are than asked for, but for those of training."""


class Task(ABC):
    """Rows of up to four splits, tokenized once."""

    auto: ClassVar[str]
    """Name of the transformers class that loads a network with this task's head."""
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    """Names of the network's outputs that count."""

    joint: ClassVar[bool] = False
    """Whether the loss of a row depends on the other rows of its batch."""

    warnings: list[tuple[str, str]]
    """Codes and messages of what a client should know about the data."""
    teacher: PreTrainedModel | None = None
    """The network before pruning, once there is one."""

    @abstractmethod
    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        """Reads the splits in `folder`, JSONL files, with the tokenizer saved in the folder `tokenizer`.

        Raises EngineError DATA_UNUSABLE, LABEL_UNKNOWN or TOKENIZER_UNUSABLE.
        """

    @classmethod
    def labels_of_new_head(cls, folder: Path, known: Sequence[str]) -> list[str] | None:
        """Labels that a fresh head needs, by index; None where `known` ones fit or the task has no labels."""
        return None

    @classmethod
    def problem_type(cls, folder: Path) -> str | None:
        """What `problem_type` the config of a fresh head needs; None where the task knows of no such thing."""
        return None

    @abstractmethod
    def rows(self, split: str) -> int:
        """How many rows the batches of a split have; none where it is missing."""

    @abstractmethod
    def batches(self, split: str, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All rows once, in batches of like length, on the CPU; shuffled where a generator is given."""

    def size(self, batch: Batch) -> int:
        """How many rows a batch has."""
        return len(batch["input_ids"])

    @abstractmethod
    def sample_size(self, rows: int) -> int:
        """How many rows `sample` gives when asked for `rows`."""

    @abstractmethod
    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """Up to `rows` rows of train, or where it is missing of calibration, chosen by the seed."""

    @abstractmethod
    def logits(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """What predictions are made of, (items, classes) in float32; items that have no label are left out."""

    @abstractmethod
    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss, given what `logits` returned for the batch."""

    def loss(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Mean loss over the batch."""
        return self.loss_of(self.logits(network, batch), batch)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """`T² * KL(teacher ‖ student)` of the softened `logits` of both, mean over items (Hinton et al., 2015)."""
        ours, theirs = (functional.log_softmax(logits / temperature, -1) for logits in (student, teacher))
        return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    @abstractmethod
    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """Figures of a split; leaves the network in evaluation mode."""

    def validate(self, network: PreTrainedModel) -> Evaluation:
        """Figures of `validation` to choose the best epoch by; without metrics where those would take too long."""
        return self.evaluate(network, "validation")


def inputs_in(batch: Batch, network: PreTrainedModel) -> Batch:
    """What of a batch the network is given, on its device."""
    return {name: value.to(network.device) for name, value in batch.items() if name in INPUTS}


def forward(network: PreTrainedModel, batch: Batch) -> Any:
    """What the network answers to a batch."""
    return network(**inputs_in(batch, network))
