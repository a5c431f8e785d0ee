import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.jobs import new_job, submit
from service.tables import Dataset, Model
from tests.service.routes.test_models import stored
from tests.uploads import bert_files, form, tar, zipped

DATASETS = "/v1/datasets"
ROWS = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
JSONL = "\n".join(json.dumps(row) for row in ROWS).encode()
CSV = b'text,label\r\n"good, really",1\r\nbad,0\r\n'
ROW_OF: dict[str, tuple[str, dict[str, Any], list[str] | None]] = {
    "one label": ("text-classification", {"text": "a", "text_pair": "b", "label": "x"}, ["x"]),
    "several labels": ("text-classification", {"text": "a", "labels": ["x", "y"]}, ["x", "y"]),
    "answers": (
        "question-answering",
        {"question": "who?", "context": "it is me", "answers": {"text": ["me"], "answer_start": [6]}},
        None,
    ),
    "translation": ("translation", {"source": "yes", "target": "oui"}, None),
    "tags": ("token-classification", {"tokens": ["I", "go"], "tags": ["PRON", "VERB"]}, ["PRON", "VERB"]),
    "next words": ("causal-lm", {"text": "a"}, None),
    "hidden words": ("masked-lm", {"text": "a"}, None),
    "pairs": ("sentence-embedding", {"text": "a", "text_pair": "b", "score": 0.5}, None),
}


def post(client: TestClient, parts: dict[str, bytes], *, task: str = "text-classification", **headers: str) -> Any:
    body, kind = form(parts)
    query = {"name": "rows", "task": task}
    return client.post(DATASETS, params=query, content=body, headers={"Content-Type": kind, **headers})


def test_splits_are_counted_and_labels_listed(client: TestClient, settings: Settings) -> None:
    answer = post(client, {"test": JSONL, "train": JSONL + b"\n" + JSONL})
    dataset = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{DATASETS}/{dataset['id']}")
    assert (dataset["object"], dataset["name"], dataset["task"]) == ("dataset", "rows", "text-classification")
    assert {split: facts["rows"] for split, facts in dataset["splits"].items()} == {"train": 4, "test": 2}
    assert dataset["labels"] == ["no", "yes"]
    path = settings.data_dir / "storage" / "datasets" / dataset["id"] / "test.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert path.stat().st_size == dataset["splits"]["test"]["size"]
    assert client.get(answer.headers["location"]).json() == dataset


def test_csv_with_integer_labels(client: TestClient, database: Database, settings: Settings) -> None:
    dataset = post(client, {"train": CSV}).json()
    assert dataset["labels"] is None
    path = settings.data_dir / "storage" / "datasets" / dataset["id"] / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"text": "good, really", "label": 1}, {"text": "bad", "label": 0}]
    with database.session_scope(read_only=True) as session:
        labels = session.get_one(Dataset, dataset["id"]).labels
    assert labels == {"names": None, "integers": 1, "pairs": False, "multi_label": False}


@pytest.mark.parametrize("pack", [zipped, tar])
def test_an_archive_of_splits(client: TestClient, pack: Any) -> None:
    body = pack({"data/train.jsonl": JSONL, "data/validation.csv": b"text,label\na,yes\n", "data/README.md": b"x"})
    answer = client.post(
        DATASETS,
        params={"name": "z", "task": "text-classification"},
        content=body,
        headers={"Content-Type": "application/zip"},
    )
    assert answer.status_code == 201, answer.text
    assert set(answer.json()["splits"]) == {"train", "validation"}


def test_name_and_task_may_be_parts(client: TestClient) -> None:
    body, kind = form({"train": JSONL, "name": b"mine", "task": b"text-classification"})
    answer = client.post(DATASETS, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["name"]) == (201, "mine")


@pytest.mark.parametrize(("task", "row", "labels"), ROW_OF.values(), ids=ROW_OF)
def test_every_task_has_its_rows(client: TestClient, task: str, row: dict[str, Any], labels: list[str] | None) -> None:
    dataset = post(client, {"train": json.dumps(row).encode()}, task=task).json()
    assert (dataset["task"], dataset["splits"]["train"]["rows"], dataset["labels"]) == (task, 1, labels)


def test_a_task_may_come_after_the_rows_and_says_what_they_are(client: TestClient, settings: Settings) -> None:
    rows = b'{"source": "yes", "target": "oui"}\n'
    body, kind = form({"train": rows, "test": b"source,target\nno,non\n", "task": b"translation"})
    answer = client.post(DATASETS, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["task"]) == (201, "translation")
    assert len(stored(settings)) == 2


@pytest.mark.parametrize("given", [{}, {"task": "translation"}])
def test_a_task_that_is_missing_or_said_twice(client: TestClient, settings: Settings, given: dict[str, str]) -> None:
    body, kind = form({"train": JSONL, **({"task": b"causal-lm"} if given else {})})
    answer = client.post(DATASETS, params=given, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) in ((422, "/task"), (422, "/train/1"))
    assert stored(settings) == []


def test_a_split_comes_once(client: TestClient, settings: Settings) -> None:
    once = form({"train": JSONL}, "limit")[0].removesuffix(b"--limit--\r\n")
    answer = client.post(
        DATASETS,
        params={"task": "text-classification"},
        content=once + form({"train": JSONL}, "limit")[0],
        headers={"Content-Type": "multipart/form-data; boundary=limit"},
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "PART_REPEATED")
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("parts", "task", "code"),
    [
        ({}, "text-classification", "SPLIT_MISSING"),
        ({"train": b""}, "text-classification", "ROW_INVALID"),
        ({"train": JSONL, "dev": JSONL}, "text-classification", "PART_UNKNOWN"),
        ({"train": JSONL}, "translation", "ROW_INVALID"),
        ({"train": JSONL}, "cooking", "TASK_UNKNOWN"),
        ({"train": JSONL, "test": CSV}, "text-classification", "ROW_INVALID"),
        ({"train": b"source,target\na,b\n"}, "text-classification", "ROW_INVALID"),
        ({"train": b"tokens,tags\na,b\n"}, "token-classification", "ROW_INVALID"),
        ({"train": b"PAR1\x15\x04"}, "text-classification", "NOT_AVAILABLE"),
    ],
)
def test_refusals_keep_nothing(
    client: TestClient, settings: Settings, parts: dict[str, bytes], task: str, code: str
) -> None:
    answer = post(client, parts, task=task)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert stored(settings) == []


def test_a_bad_row_is_named_and_not_repeated(client: TestClient) -> None:
    rows = b'{"text": "a", "label": 0}\n\n{"text": "sekret", "label": 1.5}\n'
    problem = post(client, {"train": rows}).json()
    assert problem["code"] == "ROW_INVALID"
    assert problem["errors"][0]["pointer"] == "/train/3/label"
    assert "line 3" in problem["detail"]
    assert "sekret" not in json.dumps(problem)
    assert "1.5" not in json.dumps(problem)


def test_list_delete_and_tenants(client: TestClient, database: Database, settings: Settings) -> None:
    dataset = post(client, {"train": JSONL}).json()
    url = f"{DATASETS}/{dataset['id']}"
    with database.session_scope() as session:
        stranger = issue_key(session, tenant="other", name="k", scopes=["admin"])[1]
    headers = {"Authorization": f"Bearer {stranger}"}
    assert client.get(url, headers=headers).status_code == 404
    assert client.delete(url, headers=headers).status_code == 404
    assert client.get(DATASETS, headers=headers).json()["data"] == []
    assert client.get(DATASETS).json()["data"] == [dataset]
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert stored(settings) == []


def test_a_data_set_that_a_job_needs_cannot_be_deleted(client: TestClient, database: Database) -> None:
    dataset = post(client, {"train": JSONL}).json()
    headers = {"Content-Type": "application/x-tar"}
    model = client.post("/v1/models", content=tar(bert_files()), headers=headers).json()
    given: dict[str, Any] = {"name": "j", "metadata": {}, "priority": 0}
    given |= {"model_id": model["id"], "dataset_id": dataset["id"]}
    with database.session_scope() as session:
        assert session.get(Model, model["id"]) is not None
        submit(session, new_job("default", given, given))
    answer = client.delete(f"{DATASETS}/{dataset['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "DATASET_IN_USE")


def test_an_upload_can_be_repeated_under_its_key(client: TestClient) -> None:
    first = post(client, {"train": JSONL}, **{"Idempotency-Key": "one"})
    again = post(client, {"train": JSONL}, **{"Idempotency-Key": "one"})
    assert (again.status_code, again.content) == (201, first.content)
    other = post(client, {"train": CSV}, **{"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
