"""Texts of a data set, each in the form in which its task or a user of the result hands it to a tokenizer."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from workers.engine.tasks.row_task import Row, load_tokenizer

TOKENIZED_TOGETHER = 1000

Encoder: TypeAlias = Callable[[list[Any]], list[list[int]]]
"""From a batch of texts of one type to ids."""


class Target(str):
    """A text that a network writes, where tokenizers may treat it unlike one that it reads."""

    __slots__ = ()


class Words(list[str]):
    """A text that is split into words already."""


Text: TypeAlias = str | tuple[str, str] | Words
"""One text, Target among them; two that are encoded as a pair; or words."""


def _text_or_pair(row: Row) -> list[Text]:
    pair = row.get("text_pair")
    return [row["text"] if pair is None else (row["text"], pair)]


def _question(row: Row) -> list[Text]:
    return [(row["question"], row["context"]), *row["answers"]["text"]]


READERS: dict[str, Callable[[Row], list[Text]]] = {
    "text-classification": _text_or_pair,
    "question-answering": _question,
    "translation": lambda row: [row["source"], Target(row["target"])],
    "token-classification": lambda row: [" ".join(row["tokens"]), Words(row["tokens"])],
    "causal-lm": lambda row: [row["text"]],
    "masked-lm": lambda row: [row["text"]],
    "sentence-embedding": lambda row: [row[key] for key in ("text", "text_pair") if row.get(key) is not None],
}


@dataclass(frozen=True)
class Texts:
    """The texts of all splits, read anew by every iteration."""

    folder: Path
    task: str

    def __iter__(self) -> Iterator[Text]:
        for file in sorted(self.folder.glob("*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    yield from READERS[self.task](json.loads(line))


def texts_of(folder: Path, task: str) -> Texts:
    """The texts of a data set: every split of JSONL files in `folder`, whose rows `task` has accepted."""
    return Texts(folder, task)


def strings_of(text: Text) -> Sequence[str]:
    """The strings that a text is made of."""
    return [text] if isinstance(text, str) else text


def batches_of(texts: Iterable[Text]) -> Iterator[list[Any]]:
    """All texts, in batches of one type: a tokenizer never takes pairs and single texts at once."""
    left = iter(texts)
    while chunk := list(islice(left, TOKENIZED_TOGETHER)):
        for kind in sorted({type(text) for text in chunk}, key=lambda kind: kind.__name__):
            yield [text for text in chunk if type(text) is kind]


class AutoEncoder:
    """Texts to ids as the tasks do it; words with and without a space before each, since loaders differ in that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tokenizer = load_tokenizer(folder)

    @cached_property
    def _spaced(self) -> Any:
        return AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False, add_prefix_space=True)

    def __call__(self, batch: list[Any]) -> list[list[int]]:
        """Ids of every text of a batch of one type; lists of words have two encodings."""
        if isinstance(batch[0], Words):
            words = [list(text) for text in batch]
            return [
                ids
                for tokenizer in (self.tokenizer, self._spaced)
                for ids in self._ids(tokenizer, words, is_split_into_words=True)
            ]
        if isinstance(batch[0], Target):
            return self._ids(self.tokenizer, text_target=[str(text) for text in batch])
        if isinstance(batch[0], str):
            return self._ids(self.tokenizer, batch)
        return self._ids(self.tokenizer, *(list(part) for part in zip(*batch, strict=True)))

    @staticmethod
    def _ids(tokenizer: Any, *texts: list[Any], **options: Any) -> list[list[int]]:
        encoded = tokenizer(*texts, truncation=False, padding=False, verbose=False, **options)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


class PlainEncoder:
    """Texts to ids as a `tokenizer.json` alone says, which is how other libraries read it."""

    def __init__(self, file: Path) -> None:
        self.backend = Tokenizer.from_file(str(file))
        self.backend.no_truncation()
        self.backend.no_padding()

    def __call__(self, batch: list[Any]) -> list[list[int]]:
        """Ids of every text of a batch of one type."""
        words = isinstance(batch[0], Words)
        return [encoding.ids for encoding in self.backend.encode_batch(batch, is_pretokenized=words)]
