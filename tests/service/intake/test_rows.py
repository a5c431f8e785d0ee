import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import Invalid, PayloadTooLarge
from service.intake.limits import Limits
from service.intake.rows import MAX_LINE, Kind, kind_of, read_rows


class OneByte:
    """A source that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._file.read(1)


def _classification() -> Kind:
    return kind_of("text-classification")


def _read(data: bytes, folder: Path, kind: Kind | None = None, total: int = 1 << 30) -> list[Any]:
    target = folder / "out.jsonl"
    target.unlink(missing_ok=True)
    limits = Limits("dataset", total, folder, 0)
    count, stored = read_rows(io.BytesIO(data), "train", target, kind or _classification(), limits)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert (count, stored.size) == (len(rows), target.stat().st_size)
    return rows


@pytest.mark.parametrize(
    "data",
    [
        b'{"text": "a", "label": 1}\n{"label": 0, "text": "b"}\n',
        b'\xef\xbb\xbf{"text": "a", "label": 1}\r\n\r\n{"text": "b", "label": 0, "text_pair": null}',
        b"label,text\n1,a\n0,b\n",
        b'\xef\xbb\xbftext,label\r\n"a",1\r\n\r\nb,"0"',
    ],
)
def test_writers_differ_and_rows_do_not(data: bytes, tmp_path: Path) -> None:
    assert _read(data, tmp_path) == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def test_a_question_without_an_answer_is_told_by_split_line_and_cause(tmp_path: Path) -> None:
    """As half of the rows of SQuAD 2.0 are."""
    answered = {"question": "who?", "context": "it is me", "answers": {"text": ["me"], "answer_start": [6]}}
    rows = [answered, answered | {"answers": {"text": [], "answer_start": []}}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with pytest.raises(Invalid) as caught:
        _read(data, tmp_path, kind_of("question-answering"))
    assert caught.value.detail.startswith("Split train, line 2: questions without an answer are not taken")


def test_pairs_and_names(tmp_path: Path) -> None:
    kind = _classification()
    rows = _read(b"text,text_pair,label\na,b,yes\nc,,no\n", tmp_path, kind)
    assert rows == [{"text": "a", "text_pair": "b", "label": "yes"}, {"text": "c", "text_pair": "", "label": "no"}]
    assert kind.summary() == {"names": ["no", "yes"], "integers": None, "pairs": True, "multi_label": False}


@pytest.mark.parametrize(
    ("task", "data", "row"),
    [
        ("translation", b"target,source\noui,yes\n", {"source": "yes", "target": "oui"}),
        ("causal-lm", b'text\n"a, b"\n', {"text": "a, b"}),
        ("masked-lm", b"text\n7\n", {"text": "7"}),
        ("sentence-embedding", b"text,text_pair,score\na,b,-1.5\n", {"text": "a", "text_pair": "b", "score": -1.5}),
        ("sentence-embedding", b"text\na\n", {"text": "a"}),
    ],
)
def test_flat_rows_of_other_tasks_may_be_csv(task: str, data: bytes, row: dict[str, Any], tmp_path: Path) -> None:
    assert _read(data, tmp_path, kind_of(task)) == [row]


@pytest.mark.parametrize("task", ["question-answering", "token-classification"])
def test_rows_of_lists_are_no_csv(task: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="not JSONL"):
        _read(b"tokens,tags\na,b\n", tmp_path, kind_of(task))


def test_a_quoted_field_may_span_lines(tmp_path: Path) -> None:
    assert _read(b'text,label\n"a\nb ""c"", d",0\n', tmp_path)[0]["text"] == 'a\nb "c", d'


def test_a_line_may_come_a_byte_at_a_time(tmp_path: Path) -> None:
    source = OneByte(b'{"text": "a", "label": 1}\n{"text": "b", "label": 0}')
    limits = Limits("dataset", 1000, tmp_path, 0)
    assert read_rows(source, "train", tmp_path / "o", _classification(), limits)[0] == 2


def test_the_longest_line_is_taken(tmp_path: Path) -> None:
    text = "a" * 200_000
    row = json.dumps({"text": text, "text_pair": text, "label": 0})
    line = row[:-1] + " " * (MAX_LINE - len(row) - 1) + "}\n"
    assert len(line) == MAX_LINE
    assert _read(line.encode(), tmp_path)[0]["text"] == text
    with pytest.raises(Invalid, match="line 1"):
        _read(b" " + line.encode(), tmp_path)


def test_normalised_rows_count_towards_the_limit(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge) as error:
        _read(b"text,label\n" + b"a,0\n" * 100, tmp_path, total=1000)
    assert error.value.code == "DATASET_TOO_LARGE"


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_TEXT, st.integers(0, 99_999)), min_size=1, max_size=8))
def test_texts_come_back_as_they_were(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    wanted = [{"text": text, "label": label} for text, label in rows]
    for ascii_ in (True, False):
        lines = "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in wanted)
        assert _read_json(lines.encode(), tmp_path) == wanted


def _read_json(data: bytes, folder: Path) -> list[Any]:
    target = folder / "out.jsonl"
    target.unlink(missing_ok=True)
    read_rows(io.BytesIO(data), "train", target, _classification(), Limits("dataset", 1 << 30, folder, 0))
    return [json.loads(line) for line in target.read_bytes().split(b"\n") if line]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_TEXT.filter(lambda text: "\r" not in text), min_size=1, max_size=8))
def test_csv_texts_come_back_as_they_were(tmp_path: Path, texts: list[str]) -> None:
    target = io.StringIO(newline="")
    writer = csv.writer(target, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label"], *([text, "0"] for text in texts)])
    rows = _read_json(target.getvalue().encode(), tmp_path)
    assert [row["text"] for row in rows] == texts
