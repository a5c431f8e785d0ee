"""What a row is, task by task. A kind checks the rows of one data set, whose splits must agree."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from service.errors import invalid
from service.intake.rows.lines import Fault, Row
from service.intake.rows.values import Everywhere, Labels, items, label, score, text
from service.specs import QUALITY_METRICS

MAX_ID = 256


class Kind(ABC):
    """Rows of one task."""

    columns: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]] = ()
    """Columns that the header of a CSV file must name; none where rows are not flat, so that CSV is not taken."""

    def check(self, row: Row) -> Row:
        """The row with its columns in order. Raises `Fault`."""
        if not row.keys() <= set(self.columns):
            raise Fault(f"a column is none of {', '.join(self.columns)}")
        return self._clean({column: value for column, value in row.items() if value is not None})

    @abstractmethod
    def _clean(self, row: Row) -> Row:
        """The row with its columns in order, those that were null left out before. Raises `Fault`."""

    def summary(self) -> dict[str, Any] | None:
        """What later checks need to know of the rows; None where it is nothing."""
        return None


class TextClassification(Kind):
    """A text or a pair with its label, or with any number of labels."""

    columns = ("text", "text_pair", "label", "labels")
    needed = ("text", "label")

    def __init__(self) -> None:
        self._labels, self._pairs, self._several = Labels(), Everywhere("text_pair"), Everywhere("labels")

    def _clean(self, row: Row) -> Row:
        clean = _pair(row)
        self._pairs.add("text_pair" in clean)
        self._several.add("labels" in row)
        if "labels" not in row:
            clean["label"] = label(row.get("label"), "label")
            self._labels.add(clean["label"], "label")
            return clean
        if "label" in row:
            raise Fault("give label or labels, not both", "labels")
        clean["labels"] = [label(value, "labels") for value in items(row["labels"], "labels", least=0)]
        if len(set(clean["labels"])) != len(clean["labels"]):
            raise Fault("labels has one twice", "labels")
        for value in clean["labels"]:
            self._labels.add(value, "labels")
        return clean

    def summary(self) -> dict[str, Any]:
        """Names, or the highest integer; whether texts are pairs and rows have several labels."""
        more = {"pairs": bool(self._pairs.there), "multi_label": bool(self._several.there)}
        return {**self._labels.summary(), **more}


def _pair(row: Row) -> Row:
    clean: Row = {"text": text(row.get("text"), "text")}
    if "text_pair" in row:
        clean["text_pair"] = text(row["text_pair"], "text_pair")
    return clean


class QuestionAnswering(Kind):
    """A question, and where in the context its answers stand: `answer_start` counts characters."""

    columns = ("id", "question", "context", "answers")

    def _clean(self, row: Row) -> Row:
        clean = {column: text(row.get(column), column) for column in ("question", "context")}
        if "id" in row:
            clean = {"id": text(row["id"], "id"), **clean}
            if len(clean["id"]) > MAX_ID:
                raise Fault(f"id holds at most {MAX_ID} characters", "id")
        return {**clean, "answers": _answers(row.get("answers"), clean["context"])}


def _answers(value: Any, context: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != {"text", "answer_start"}:
        raise Fault("answers must be an object of text and answer_start", "answers")
    if value["text"] == []:
        raise Fault("questions without an answer are not taken in this version; leave such rows out", "answers/text")
    texts = [text(item, "answers/text") for item in items(value["text"], "answers/text")]
    starts = items(value["answer_start"], "answers/answer_start")
    if len(texts) != len(starts):
        raise Fault("answers needs as many answer_start as text", "answers")
    for answer, start in zip(texts, starts, strict=True):
        if type(start) is not int or not answer or start < 0 or context[start : start + len(answer)] != answer:
            raise Fault("an answer does not stand in the context where answer_start says", "answers/answer_start")
    return {"text": texts, "answer_start": starts}


class Translation(Kind):
    """A text and its translation."""

    columns = needed = ("source", "target")

    def _clean(self, row: Row) -> Row:
        return {column: text(row.get(column), column) for column in self.columns}


class TokenClassification(Kind):
    """Words and a tag for each."""

    columns = ("tokens", "tags")

    def __init__(self) -> None:
        self._labels = Labels()

    def _clean(self, row: Row) -> Row:
        tokens = [text(item, "tokens") for item in items(row.get("tokens"), "tokens")]
        tags = [label(item, "tags") for item in items(row.get("tags"), "tags")]
        if not all(tokens):
            raise Fault("a token is empty", "tokens")
        if len(tokens) != len(tags):
            raise Fault("there must be as many tags as tokens", "tags")
        for tag in tags:
            self._labels.add(tag, "tags")
        return {"tokens": tokens, "tags": tags}

    def summary(self) -> dict[str, Any]:
        """Names of the tags, or the highest integer."""
        return self._labels.summary()


class PlainText(Kind):
    """A text, whose own words are what a language model guesses."""

    columns = needed = ("text",)

    def _clean(self, row: Row) -> Row:
        return {"text": text(row.get("text"), "text")}


class SentenceEmbedding(Kind):
    """A text, or a pair, or a pair with a score that says how alike its texts are."""

    columns = ("text", "text_pair", "score")
    needed = ("text",)

    def __init__(self) -> None:
        self._pairs, self._scores = Everywhere("text_pair"), Everywhere("score")

    def _clean(self, row: Row) -> Row:
        clean = _pair(row)
        if "score" in row:
            clean["score"] = score(row["score"])
            if "text_pair" not in row:
                raise Fault("a score needs text_pair", "text_pair")
        self._pairs.add("text_pair" in clean)
        self._scores.add("score" in clean)
        return clean

    def summary(self) -> dict[str, Any]:
        """Whether texts are pairs, and have scores."""
        return {"pairs": bool(self._pairs.there), "scores": bool(self._scores.there)}


KINDS: dict[str, type[Kind]] = {
    "text-classification": TextClassification,
    "question-answering": QuestionAnswering,
    "translation": Translation,
    "token-classification": TokenClassification,
    "causal-lm": PlainText,
    "masked-lm": PlainText,
    "sentence-embedding": SentenceEmbedding,
}


def kind_of(task: str | None) -> Kind:
    """A fresh kind for the rows of one data set. Raises `Invalid` for a task that there is not."""
    if task not in KINDS:
        raise invalid("/task", f"task must be one of {', '.join(QUALITY_METRICS)}", "TASK_UNKNOWN")
    return KINDS[task]()
