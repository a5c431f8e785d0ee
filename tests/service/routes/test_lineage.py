"""The kin of a model over HTTP, by the client and on a terminal."""

import json
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from service.cli import main
from service.client import Client
from service.commands.lineage import draw_lineage
from service.db import Database
from service.ids import new_id
from service.lineage import LARGEST, cut_in_short
from service.tables import Job, Model, utc_now
from tests.databases import on_databases
from tests.service.samples import a_job, a_model, store
from tests.service.test_client_webhooks import passing_on


def made_of(database: Database, parent: Model, name: str, **changes: Any) -> Model:
    """A model that a job of the same name made of another one."""
    job = a_job(parent.id, tenant=parent.tenant, name=name, status="succeeded", result={"passed": False}, **changes)
    store(database, job)
    return store(database, a_model(name=name, parent_model_id=parent.id, job_id=job.id, tenant=parent.tenant))


def lineage(client: TestClient, model: Model) -> dict[str, Any]:
    """What the API tells."""
    answer = client.get(f"/v1/models/{model.id}/lineage")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@on_databases
def test_ancestors_and_descendants_are_told_and_no_one_else(client: TestClient, database: Database) -> None:
    root = store(database, a_model(name="root"))
    half = made_of(database, root, "half")
    made_of(database, root, "beside")
    quarter, third = made_of(database, half, "quarter"), made_of(database, half, "third")
    found = lineage(client, half)
    assert [(node["name"], node["generation"]) for node in found["nodes"]] == [
        ("root", -1), ("half", 0), ("quarter", 1), ("third", 1),
    ]  # fmt: skip
    assert (found["model_id"], found["root_id"], found["truncated"]) == (half.id, root.id, False)
    assert [(edge["parent"], edge["child"], edge["job_id"]) for edge in found["edges"]] == [
        (root.id, half.id, half.job_id), (half.id, quarter.id, quarter.job_id), (half.id, third.id, third.job_id),
    ]  # fmt: skip
    assert found["nodes"][0]["job"] is None and found["nodes"][0]["parameters"] == 1000
    assert found["nodes"][1]["job"] == {
        "id": half.job_id,
        "name": "half",
        "status": "succeeded",
        "cut": "ffn_neurons 33 % by magnitude",
        "passed": None,
    }
    assert len(lineage(client, root)["nodes"]) == 5
    assert [node["name"] for node in lineage(client, third)["nodes"]] == ["root", "half", "third"]


@on_databases
def test_deleted_models_and_jobs_leave_their_ids(client: TestClient, database: Database) -> None:
    root = store(database, a_model(name="secret"))
    half = made_of(database, root, "half")
    quarter = made_of(database, half, "quarter")
    with database.session_scope() as session:
        session.get_one(Model, root.id).deleted_at = utc_now()
        session.get_one(Model, half.id).state = "expired"
        session.delete(session.get_one(Job, quarter.job_id))
    top, middle, last = lineage(client, quarter)["nodes"]
    assert (top["id"], top["state"], top["name"], top["size"]) == (root.id, "deleted", None, None)
    assert (middle["state"], middle["name"]) == ("expired", "half")
    assert last["job"] is None
    assert client.get(f"/v1/models/{root.id}/lineage").status_code == 404


@on_databases
def test_verdicts_are_told_where_there_are_goals(client: TestClient, database: Database) -> None:
    root = store(database, a_model())
    job = a_job(root.id, status="rejected", result={"passed": False})
    job.configuration |= {"acceptance": [{"metric": "size", "max_ratio": 0.1}]}
    store(database, job)
    made = store(database, a_model(parent_model_id=root.id, job_id=job.id))
    assert lineage(client, made)["nodes"][1]["job"]["passed"] is False


@on_databases
def test_another_tenants_models_are_not_kin(client: TestClient, database: Database) -> None:
    foreign = store(database, a_model(tenant="other"))
    own = store(database, a_model(parent_model_id=foreign.id))
    store(database, a_model(parent_model_id=own.id, tenant="other"))
    assert [node["id"] for node in lineage(client, own)["nodes"]] == [own.id]
    assert client.get(f"/v1/models/{foreign.id}/lineage").status_code == 404


@on_databases
def test_many_kin_are_bounded_and_quick(client: TestClient, database: Database) -> None:
    root, ids = store(database, a_model()), [new_id("mdl") for _ in range(LARGEST + 200)]
    rows = [{"id": id_, "parent_model_id": root.id} for id_ in ids]
    fields = ("tenant", "name", "state", "family", "architecture", "task", "parameters", "size", "dtype", "files",
              "structure", "facts", "prefix", "archive_size", "archive_sha256", "created_at")  # fmt: skip
    shared = {name: getattr(root, name) for name in fields} | {"metadata_": {}}
    with database.session_scope() as session:
        session.execute(insert(Model), [shared | row for row in rows])
    began = time.monotonic()
    found = lineage(client, root)
    assert time.monotonic() - began < 5
    assert found["truncated"] and len(found["nodes"]) == LARGEST
    assert [node["id"] for node in found["nodes"]] == [root.id, *ids[: LARGEST - 1]]


@on_databases
def test_a_long_line_keeps_the_nearest(client: TestClient, database: Database) -> None:
    line = [store(database, a_model(name="0"))]
    rows = []
    for number in range(1, 40):
        line.append(a_model(name=str(number), parent_model_id=line[-1].id))
        rows.append(line[-1])
    store(database, *rows)
    found = lineage(client, line[20])
    assert [node["generation"] for node in found["nodes"]] == list(range(-20, 20))
    assert len(found["edges"]) == 39


@pytest.mark.parametrize(
    ("pruning", "told"),
    [
        ({"cuts": [{"structure": "weights", "pattern": "2:4", "criterion": {"kind": "activation"}}]},
         "weights 2:4 by activation"),
        ({"cuts": [{"structure": "vocabulary"}], "target": None}, "vocabulary"),
        ({"cuts": [], "target": {"metric": "latency", "ratio": 0.5}}, "latency to 50 %"),
        ({"cuts": [{"structure": "layers", "ratio": 0.125}] * 14}, ", ".join(["layers 12.5 %"] * 12) + ", 2 more"),
        (None, ""),
    ],
)  # fmt: skip
def test_what_was_cut_is_told_in_short(pruning: Any, told: str) -> None:
    assert cut_in_short({"pruning": pruning}) == told


def test_it_is_drawn_as_a_tree(client: TestClient, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    root = store(database, a_model(name="root"))
    half = made_of(database, root, "half [bold]")
    quarter = made_of(database, half, "quarter")
    draw_lineage(lineage(client, half), width=200)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{root.id}  root  1,000 parameters, 4.0 kB")
    assert lines[1].startswith(f"└── * {half.id}  half [bold]") and "ffn_neurons 33 % by magnitude" in lines[1]
    assert lines[2].startswith(f"    └── {quarter.id}  quarter")


def test_the_command_draws_or_prints_it(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store(database, a_model(name="root"))
    half = made_of(database, root, "half")

    def connect() -> Client:
        return Client("http://service", "sct_key", transport=httpx.MockTransport(passing_on(client)))

    monkeypatch.setattr("service.commands.models.connect", connect)
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["models", "lineage", half.id, *arguments])
    drawn, _, printed = capsys.readouterr().out.partition("{")
    assert root.id in drawn and f"* {half.id}" in drawn
    assert json.loads("{" + printed) == lineage(client, half)
