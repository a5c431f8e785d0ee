"""What tasks share: splits read from JSONL and tokenized once, those that are missing, batches, samples."""

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from service.specs import TaskName
from workers.engine.failures import EngineError
from workers.engine.tasks.encoded import Column, Encoded, bucketed, by_length
from workers.engine.tasks.task import Batch, Settings, Task, forward

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]
Numbers: TypeAlias = Mapping[str, Sequence[Any]]

TOKENIZED_TOGETHER = 1000
EVALUATION_BATCH = 64
IGNORED = -100
"""Label of positions that have none."""


class RowTask(Task):
    """Rows of a JSONL file, turned into numbers; by default every position that has a label counts."""

    name: ClassVar[TaskName]
    form: ClassVar[str]
    """What a row needs, in words."""
    needs_offsets: ClassVar[bool] = False
    """Whether the tokenizer has to say where in a text a token stands."""

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        self.settings = settings
        self.warnings = []
        self.tokenizer = load_tokenizer(tokenizer, offsets=self.needs_offsets)
        config = network.config
        self.padding = int(getattr(config, "pad_token_id", None) or 0)
        self.typed = getattr(config, "type_vocab_size", 1) > 1
        self.vocabulary = self.vocabularies(config)
        self._truncated = 0
        self._splits: dict[str, Encoded] = {}
        self._read(folder)
        if self._truncated:
            limit = f"max_length ({settings.max_length} tokens)"
            self.warnings.append(("INPUT_TRUNCATED", f"{self._truncated} inputs are longer than {limit} and were cut."))

    @classmethod
    @abstractmethod
    def fits(cls, row: Row) -> bool:
        """Whether a row is one of this task's; may raise KeyError or TypeError where it is not."""

    @classmethod
    def vocabularies(cls, config: Any) -> dict[str, int]:
        """Columns of token ids, and how many different ones the network has embeddings for."""
        return {"input_ids": int(config.vocab_size)}

    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """What `encode` makes of a row."""

    @abstractmethod
    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """Rows as numbers; one may become several, or several one."""

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The last touch to a batch of columns, under a generator for what is left to chance."""
        return batch

    @classmethod
    def read(cls, file: Path) -> Iterator[Row]:
        """Rows of a split; raises EngineError DATA_UNUSABLE naming split and line."""
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    usable = cls.fits(row)
                except (ValueError, KeyError, TypeError):
                    usable = False
                if not usable:
                    message = f"line {number} of {file.stem} is no row of {cls.name}: it needs {cls.form}"
                    raise EngineError("DATA_UNUSABLE", message, blame="user")
                yield row

    def _read(self, folder: Path) -> None:
        files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
        for split, file in files.items():
            if split == "train" and "validation" not in files:
                held = _held_out(file, self.settings.seed)
                for name, wanted in (("validation", True), ("train", False)):
                    rows = (row for number, row in enumerate(self.read(file)) if (number in held) is wanted)
                    self._splits[name] = self._encoded(rows)
            else:
                self._splits[split] = self._encoded(self.read(file))
        if "test" not in self._splits and "validation" in self._splits:
            self._splits["test"] = self._splits["validation"]
            self.warnings.append(("TEST_SPLIT_MISSING", "No test split: the figures are on the validation split."))

    def _encoded(self, rows: Iterator[Row]) -> Encoded:
        encoded = Encoded(self.columns())
        for row in self.encode(rows):
            encoded.append(row)
        if any(encoded.highest(name) >= size for name, size in self.vocabulary.items()):
            message = "the tokenizer gives token ids that the model has no embedding for; upload the model's own"
            raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
        return encoded

    def tokenize(self, *texts: list[str], target: bool = False, **options: Any) -> Any:
        """Texts, or texts and their partners, cut to `max_length`; what was cut is counted for the warning."""
        cut = self._call(texts, target, truncation=True, max_length=self.settings.max_length, **options)
        longest = [len(ids) == self.settings.max_length for ids in cut["input_ids"]]
        if any(longest):  # whether they were cut or fit exactly shows only without the limit
            suspects = [[text for text, long in zip(part, longest, strict=True) if long] for part in texts]
            full = self._call(suspects, target, verbose=False)
            self._truncated += sum(len(ids) > self.settings.max_length for ids in full["input_ids"])
        return cut

    def _call(self, texts: Sequence[list[str]], target: bool, **options: Any) -> Any:
        return self.tokenizer(text_target=texts[0], **options) if target else self.tokenizer(*texts, **options)

    def rows(self, split: str) -> int:
        """How many rows the batches of a split have; none where it is missing."""
        return len(self._splits.get(split, ()))

    def _split(self, name: str) -> Encoded:
        if not self.rows(name):
            raise EngineError("DATA_UNUSABLE", f"the job needs rows in the split {name}; there are none", blame="user")
        return self._splits[name]

    def batches(self, split: str, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All rows once, in batches of like length, int64 of (batch, tokens); shuffled where a generator is given."""
        rows = self._split(split)
        if generator is None:
            generator = self._seeded()
            chunks = by_length(range(len(rows)), rows.lengths, batch_size)
        else:
            chunks = bucketed(rows.lengths, batch_size, generator)
        for chunk in chunks:
            yield self.collate(rows.batch(chunk), generator)

    def sample_size(self, rows: int) -> int:
        """How many rows `sample` gives when asked for `rows`."""
        return min(rows, self.rows("train") or self.rows("calibration"))

    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """Rows of `train`, or where it is missing of `calibration`, chosen by the seed."""
        source, generator = self._split("train" if self.rows("train") else "calibration"), self._seeded()
        order = torch.randperm(len(source), generator=generator).tolist()[:rows]
        for chunk in by_length(order, source.lengths, self._fitting(batch_size)):
            yield self.collate(source.batch(chunk), generator)

    def _fitting(self, batch_size: int) -> int:
        return max(1, batch_size // self.settings.divisor)

    def _seeded(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed)

    def logits(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Scores of (items, classes): those that have a label, row by row."""
        scores: Tensor = forward(network, batch).logits
        kept = (batch["labels"] != IGNORED).to(scores.device)
        return (scores.flatten(0, -2) if bool(kept.all()) else scores[kept]).float()

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over items."""
        return functional.cross_entropy(logits, labels_in(batch).to(logits.device))

    @torch.inference_mode()
    def passes(
        self, network: PreTrainedModel, split: str, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Batches of a split and their `logits`, the network in evaluation mode."""
        network.train(False)
        for batch in self.batches(split, self._fitting(batch_size)):
            yield batch, self.logits(network, batch)


def labels_in(batch: Batch) -> Tensor:
    """Labels of (items,), in the order of `RowTask.logits`."""
    labels = batch["labels"]
    return labels[labels != IGNORED]


class Mean:
    """A mean that is taken bit by bit."""

    def __init__(self) -> None:
        self._sum, self._weight = 0.0, 0

    def add(self, value: Tensor, weight: int) -> None:
        """A mean over `weight` items."""
        self._sum, self._weight = self._sum + value.item() * weight, self._weight + weight

    @property
    def value(self) -> float:
        """The mean over all items; 0 where there was none."""
        return self._sum / max(1, self._weight)


def chunks(rows: Iterator[T], size: int = TOKENIZED_TOGETHER) -> Iterator[list[T]]:
    """Runs of rows that are tokenized together."""
    while chunk := list(islice(rows, size)):
        yield chunk


def _held_out(train: Path, seed: int) -> set[int]:
    """A tenth of the rows by chance, the validation split of those who sent none."""
    with train.open(encoding="utf-8") as lines:
        rows = sum(1 for _ in lines)
    if rows < 2:
        raise EngineError("DATA_UNUSABLE", "train needs at least two rows, or a validation split", blame="user")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return set(order[: max(1, rows // 10)])


def load_tokenizer(folder: Path, *, offsets: bool = False) -> Any:
    """The tokenizer saved in a folder. Raises EngineError TOKENIZER_UNUSABLE, also where it lacks `offsets`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to install what improves a few languages' punctuation
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the library raises, the files are what cannot be used
        message = "the model's tokenizer files are missing or cannot be read; upload them with the model"
        raise EngineError("TOKENIZER_UNUSABLE", message, blame="user") from error
    if offsets and not tokenizer.is_fast:
        message = "the model's tokenizer does not say where tokens stand in a text; upload it as tokenizer.json"
        raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
    return tokenizer
