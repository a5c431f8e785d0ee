"""Extractive question answering (Rajpurkar et al., 2016): the answer is a span of the context."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.row_task import Mean, Numbers, Row, RowTask, chunks
from workers.engine.tasks.task import Batch, Settings, forward

LONGEST_ANSWER = 30
"""Tokens of a predicted span."""
NEVER = -1e4
"""Score of padding: no share in a softmax, yet finite, since a divergence must not subtract infinities."""


@dataclass(frozen=True)
class Question:
    """What an answer is judged by; no `answers` means that the context holds none."""

    context: str
    answers: list[str]


@dataclass
class Guess:
    """The best answer so far over the windows of a question."""

    score: float = -np.inf
    text: str = ""
    none: float = np.inf
    """How likely there is no answer, by the window that likes this least."""


class QuestionAnswering(RowTask):
    """Rows in SQuAD's fields; a context that is too long slides by in windows, which are the rows of batches."""

    name = "question-answering"
    form = "question, context and answers, an object of the lists text and answer_start"
    auto = "AutoModelForQuestionAnswering"
    outputs = ("start_logits", "end_logits")
    needs_offsets = True

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        self._questions: list[Question] = []
        super().__init__(folder, tokenizer, network, settings)
        self._unanswerable = any(not question.answers for question in self._questions)

    @classmethod
    def fits(cls, row: Row) -> bool:
        """Every answer stands in the context where it says."""
        context, texts, starts = row["context"], row["answers"]["text"], row["answers"]["answer_start"]
        strings = isinstance(row["question"], str) and isinstance(context, str) and len(texts) == len(starts)
        found = (start >= 0 and context.startswith(text, start) for text, start in zip(texts, starts, strict=True))
        return strings and all(found)

    def columns(self) -> dict[str, Column]:
        """Tokens, what they span of the context (-1: nothing), the answer's first and last, the question's number."""
        spans = {"begins": Column(-1), "ends": Column(-1)}
        types = {"token_type_ids": Column(0, "b")} if self.typed else {}
        answer = {"start_positions": Column(), "end_positions": Column(), "question": Column()}
        return {"input_ids": Column(self.padding, mask="attention_mask")} | types | spans | answer

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """The windows of every question."""
        for chunk in chunks(rows):
            texts = [[row[key] for row in chunk] for key in ("question", "context")]
            found = self.tokenizer(*texts, return_offsets_mapping=True, return_token_type_ids=self.typed, verbose=False)
            for index, row in enumerate(chunk):
                part = np.array([-1 if part is None else part for part in found.sequence_ids(index)])
                tokens = {name: np.array(found[name][index]) for name in found if name != "attention_mask"}
                yield from self._windows(tokens, part, row)

    def _windows(self, tokens: dict[str, NDArray[Any]], part: NDArray[np.int64], row: Row) -> Iterator[Numbers]:
        begins, ends = np.where(part[:, None] == 1, tokens.pop("offset_mapping"), -1).T
        tokens |= {"begins": begins, "ends": ends}
        long = self._too_long(part)
        tokens, part = {name: values[~long] for name, values in tokens.items()}, part[~long]
        inside = np.flatnonzero(part == 1)
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (len(part), len(part) - 1)
        answer = _answer(tokens, row["answers"])
        number = {"question": [len(self._questions)]}
        self._questions.append(Question(row["context"], row["answers"]["text"]))
        room = max(1, self.settings.max_length - (len(part) - len(inside)))
        # Where the question leaves little room, windows must still move on by half of it.
        overlap = min(self.settings.stride or self.settings.max_length // 2, room // 2)
        for start in range(first, max(first + 1, last + 1 - overlap), room - overlap):
            kept = np.r_[0:first, start : min(start + room, last + 1), last + 1 : len(part)]
            places = [int(np.searchsorted(kept, token)) for token in answer if token in kept]
            window = {name: values[kept].tolist() for name, values in tokens.items()}
            positions = places if len(places) == 2 else [0, 0]  # the first token stands for no answer
            yield window | number | {"start_positions": positions[:1], "end_positions": positions[1:]}

    def _too_long(self, part: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tokens at the end of a question that would take more than half of a window."""
        excess = int((part < 1).sum()) - max(1, self.settings.max_length // 2)
        long = np.zeros(len(part), dtype=bool)
        if excess > 0:
            long[np.flatnonzero(part == 0)[-excess:]] = True
            self._truncated += 1
        return long

    def logits(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Scores of every position as the first and as the last of the answer, (2 * windows, length)."""
        found = forward(network, batch)
        padding = (batch["attention_mask"] == 0).repeat(2, 1).to(found.start_logits.device)
        return torch.cat([found.start_logits, found.end_logits]).float().masked_fill(padding, NEVER)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean of the cross-entropies of start and end."""
        positions = torch.cat([batch["start_positions"], batch["end_positions"]])
        return functional.cross_entropy(logits, positions.to(logits.device))

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`exact_match` and `f1`, from 0 to 100, of questions; the loss is that of windows."""
        loss, guesses = Mean(), dict[int, Guess]()
        for batch, logits in self.passes(network, split):
            loss.add(self.loss_of(logits, batch), len(logits))
            for number, score, begin, end, none in zip(*_best_answers(logits.cpu(), batch), strict=True):
                guess = guesses.setdefault(number, Guess())
                guess.none = min(guess.none, none)
                if score > guess.score:
                    guess.score, guess.text = score, self._questions[number].context[begin:end]
        rows = [self._judge(self._questions[number], guess) for number, guess in sorted(guesses.items())]
        return Summed(loss.value, QUALITY_METRICS[self.name], np.array(rows), means)

    def _judge(self, question: Question, guess: Guess) -> tuple[float, float, float]:
        from torchmetrics.functional.text import squad  # with all that it imports, a second of the start of every job

        text = "" if self._unanswerable and guess.none > guess.score else guess.text
        answers: dict[str, Any] = {"text": question.answers or [""]}
        found = squad({"prediction_text": text, "id": ""}, {"answers": answers, "id": ""})
        return float(found["exact_match"]), float(found["f1"]), 1.0


def means(sums: NDArray[np.float64]) -> tuple[float, float]:
    """Means over questions, whose number is the last of the sums."""
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def _answer(tokens: dict[str, NDArray[Any]], answers: dict[str, list[Any]]) -> tuple[int, ...]:
    """The first and last token of the first answer; nothing where there is none."""
    if not answers["text"]:
        return ()
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    touched = np.flatnonzero((tokens["ends"] > start) & (tokens["begins"] < end) & (tokens["begins"] >= 0))
    return (int(touched[0]), int(touched[-1])) if len(touched) else ()


def _best_answers(logits: Tensor, batch: Batch) -> Iterator[list[Any]]:
    """Per window: the question, the score of the best span, where it begins and ends, the score of no answer."""
    starts, ends = logits.chunk(2)
    outside = batch["begins"] < 0
    best, first, last = best_spans(starts.masked_fill(outside, -np.inf), ends.masked_fill(outside, -np.inf))
    windows = torch.arange(len(best))
    begin, end = batch["begins"][windows, first], batch["ends"][windows, last]
    return (values.tolist() for values in (batch["question"], best, begin, end, starts[:, 0] + ends[:, 0]))


def best_spans(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of both scores, first and last position of the best span of up to `LONGEST_ANSWER` in each row."""
    rows, length = starts.shape
    best, first, last = torch.full((rows,), -np.inf), *torch.zeros((2, rows), dtype=torch.long)
    for more in range(min(LONGEST_ANSWER, length)):
        score, place = (starts[:, : length - more] + ends[:, more:]).max(1)
        better = score > best
        best, first, last = (
            torch.where(better, new, old) for new, old in ((score, best), (place, first), (place + more, last))
        )
    return best, first, last
