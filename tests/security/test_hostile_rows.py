"""Every hostile data set is refused over HTTP, naming split and line; nothing is kept."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.config import Settings
from tests.service.routes.test_datasets import DATASETS, post
from tests.service.routes.test_models import stored
from tests.uploads import tar, zipped

GOOD = b'{"text": "a", "label": 0}\n'

ROWS: dict[str, Callable[[], bytes]] = {
    "one line of 3 MiB": lambda: GOOD + b'{"text": "' + b"a" * (3 << 20) + b'", "label": 0}\n',
    "depth 200 000": lambda: GOOD + b'{"text": ' + b"[" * 200_000 + b"}\n",
    "depth 40": lambda: GOOD + b'{"text": "a", "label": ' + b"[" * 40 + b"]" * 40 + b"}\n",
    "a million digits": lambda: GOOD + b'{"text": "a", "label": ' + b"1" * 1_000_000 + b"}\n",
    "2**70": lambda: GOOD + b'{"text": "a", "label": 1180591620717411303424}\n',
    "NaN": lambda: GOOD + b'{"text": "a", "label": NaN}\n',
    "infinity": lambda: GOOD + b'{"text": "a", "label": 1e999}\n',
    "a boolean label": lambda: GOOD + b'{"text": "a", "label": true}\n',
    "a float label": lambda: GOOD + b'{"text": "a", "label": 1.0}\n',
    "a negative label": lambda: GOOD + b'{"text": "a", "label": -1}\n',
    "no label": lambda: GOOD + b'{"text": "a"}\n',
    "an empty label": lambda: GOOD + b'{"text": "a", "label": ""}\n',
    "a mixed label": lambda: GOOD + b'{"text": "a", "label": "x"}\n',
    "no text": lambda: GOOD + b'{"label": 0}\n',
    "text that is a number": lambda: GOOD + b'{"text": 1, "label": 0}\n',
    "a pair in some rows": lambda: GOOD + b'{"text": "a", "text_pair": "b", "label": 0}\n',
    "an unknown column": lambda: GOOD + b'{"text": "a", "label": 0, "url": "http://127.0.0.1/"}\n',
    "a name twice": lambda: GOOD + b'{"text": "a", "label": 0, "label": 1}\n',
    "a lone surrogate": lambda: GOOD + b'{"text": "\\ud800", "label": 0}\n',
    "an escaped NUL": lambda: GOOD + b'{"text": "\\u0000", "label": 0}\n',
    "a NUL byte": lambda: GOOD + b'{"text": "a\0", "label": 0}\n',
    "not UTF-8": lambda: GOOD + b'{"text": "\xff", "label": 0}\n',
    "UTF-16": lambda: GOOD + GOOD.decode().encode("utf-16-le"),
    "an array": lambda: GOOD + b"[1]\n",
    "a text of 300 KiB": lambda: GOOD + b'{"text": "' + b"a" * (300 << 10) + b'", "label": 0}\n',
    "cut off": lambda: GOOD + b'{"text": "a", "la',
    "CSV: a field of 300 KiB": lambda: b'text,label\n"' + b"a" * (300 << 10) + b'",0\n',
    "CSV: a quote that never ends": lambda: b'text,label\n"' + b"a\n" * 200_000,
    "CSV: too few fields": lambda: b"text,label\na\n",
    "CSV: too many fields": lambda: b"text,label\na,0,0\n",
    "CSV: a million fields": lambda: b"text,label\n" + b"," * 1_000_000 + b"\n",
    "CSV: a mixed label": lambda: b"text,label\na,0\nb,no\n",
}
FIRST_LINE: dict[str, bytes] = {
    "nothing": b"",
    "blank lines": b"\n\n\n",
    "one array": b'[{"text": "a", "label": 0}]',
    "CR only": b'{"text": "a", "label": 0}\r{"text": "b", "label": 1}\r',
    "CSV without a label": b"text\na\n",
    "CSV with a column twice": b"text,label,text\na,0,b\n",
    "CSV header only": b"text,label\n",
    "UTF-16 with its mark": "text,label\na,0\n".encode("utf-16"),
    "a pickle": b"\x80\x04\x95\x00",
    "YAML": b"- text: a\n  label: 0\n",
}


@pytest.fixture(autouse=True)
def nothing_kept(shared_client: TestClient, shared_settings: Settings) -> Any:
    """Whatever a test uploads leaves nothing."""
    yield
    assert stored(shared_settings) == []
    assert shared_client.get(DATASETS).json()["data"] == []


@pytest.mark.parametrize("name", ROWS)
def test_the_second_line_is_named(shared_client: TestClient, name: str) -> None:
    answer = post(shared_client, {"validation": ROWS[name]()})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "ROW_INVALID"), problem
    line = int(problem["errors"][0]["pointer"].split("/")[2])
    assert problem["errors"][0]["pointer"].startswith("/validation/")
    assert line == 2 if "never ends" not in name and "CSV: a mixed" not in name else line > 2


@pytest.mark.parametrize("name", FIRST_LINE)
def test_what_is_no_data_set_at_all(shared_client: TestClient, name: str) -> None:
    answer = post(shared_client, {"train": FIRST_LINE[name]})
    assert (answer.status_code, answer.json()["code"]) == (422, "ROW_INVALID"), answer.text
    assert answer.json()["errors"][0]["pointer"].startswith("/train/")


def test_a_data_set_card_is_never_obeyed(shared_client: TestClient) -> None:
    card = b"---\nconfigs:\n- config_name: default\n  data_files: ../../secret.jsonl\n---\n"
    for pack in (tar, zipped):
        answer = shared_client.post(
            DATASETS,
            params={"name": "card", "task": "text-classification"},
            content=pack({"README.md": card, "dataset_infos.json": b"{}", "data.jsonl": GOOD}),
            headers={"Content-Type": "application/octet-stream"},
        )
        assert (answer.status_code, answer.json()["code"]) == (422, "SPLIT_MISSING")


def test_a_split_twice(shared_client: TestClient) -> None:
    answer = shared_client.post(
        DATASETS,
        params={"name": "twice", "task": "text-classification"},
        content=zipped({"train.jsonl": GOOD, "train.csv": b"text,label\na,0\n"}),
        headers={"Content-Type": "application/zip"},
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "SPLIT_REPEATED")
