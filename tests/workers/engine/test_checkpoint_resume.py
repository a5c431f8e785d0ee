"""Jobs that were killed or stopped give, bit for bit, what they would have given."""

import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.workers.engine.interrupted import (
    CASES,
    STOPPED,
    Case,
    Line,
    artifacts,
    carry_out,
    engine,
    handed_over,
    newest,
    prepared,
)
from tests.workers.engine.test_checkpoint import flip, truncate


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process check no exports, which takes a process that begins with PyTorch's import."""
    torch.set_num_threads(1)
    monkeypatch.setattr("workers.engine.compress.verify", lambda *_arguments, **_options: [])


@dataclass(frozen=True)
class Unbroken:
    """A job that nobody disturbed."""

    case: Case
    inputs: Path
    digests: dict[str, str]
    checkpoints: int
    report: dict[str, object]


def told(folder: Path) -> dict[str, object]:
    """What the report says of training and cuts."""
    report = json.loads((folder / "out" / "report" / "report.json").read_text())
    return {key: report[key] for key in ("curves", "cuts", "kept_layers")}


def unbroken(name: str, folder: Path) -> Unbroken:
    case, inputs = CASES[name], folder / "inputs"
    case.inputs(inputs)
    work = prepared(folder / "unbroken", case, inputs)
    lines = carry_out(work, seconds=0.0)
    return Unbroken(case, inputs, artifacts(work), len(of(lines, "checkpoint")), told(work))


def of(lines: list[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["type"] == kind]


def resumed_at(lines: list[Line]) -> int:
    """The step that the engine says it went on from."""
    (event,) = [line for line in of(lines, "event") if line["event"] == "checkpoint.resumed"]
    return int(event["data"]["step"])


@pytest.mark.parametrize("name", CASES)
def test_a_killed_job_ends_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    whole = unbroken(name, tmp_path)
    moment = random.Random(name).randrange(1, whole.checkpoints)
    killed = prepared(tmp_path / "killed", whole.case, whole.inputs)
    code, lines = engine(killed, lambda lines: len(of(lines, "checkpoint")) >= moment)
    assert code == -signal.SIGKILL and not (killed / "result.json").exists()
    assert len(list((killed / "checkpoints").glob("0*"))) <= 3  # one may be there that was not yet told of
    resumed = handed_over(newest(killed), prepared(tmp_path / "resumed", whole.case, whole.inputs))
    assert resumed_at(carry_out(resumed)) >= of(lines, "checkpoint")[moment - 1]["step"]
    assert artifacts(resumed) == whole.digests
    assert told(resumed) == whole.report


def test_a_job_is_stopped_and_killed_and_stopped_and_ends_well(tmp_path: Path) -> None:
    whole = unbroken("zeros that stay", tmp_path)
    work = prepared(tmp_path / "0", whole.case, whole.inputs, seconds=3600.0)
    for number, by in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM), start=1):
        code, lines = engine(work, lambda lines: "finetuning" in [x.get("phase") for x in lines[-4:]], by)
        assert code == (STOPPED if by == signal.SIGTERM else -by)
        assert of(lines, "error") == []
        checkpoint = newest(work) if (work / "checkpoints").exists() else work / "in" / "checkpoint"
        if by == signal.SIGTERM:
            assert lines[-1]["type"] == "checkpoint" and lines[-1]["name"] == checkpoint.name
        work = handed_over(checkpoint, prepared(tmp_path / str(number), whole.case, whole.inputs))
    code, lines = engine(work)
    assert code == 0 and resumed_at(lines) > 0
    assert artifacts(work) == whole.digests


@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "flipped"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(damage: object, tmp_path: Path) -> None:
    whole = unbroken("zeros that stay", tmp_path)
    work = handed_over(newest(tmp_path / "unbroken"), prepared(tmp_path / "anew", whole.case, whole.inputs))
    assert callable(damage)
    damage(work / "in" / "checkpoint")
    lines = carry_out(work)
    assert [line["code"] for line in of(lines, "warning")] == ["CHECKPOINT_UNUSABLE"]
    assert all(line["event"] != "checkpoint.resumed" for line in of(lines, "event"))
    assert artifacts(work) == whole.digests


def test_elsewhere_than_in_training_a_stopped_job_ends_at_once(tmp_path: Path) -> None:
    whole = unbroken("zeros that stay", tmp_path)
    work = prepared(tmp_path / "stopped", whole.case, whole.inputs, seconds=3600.0)
    code, lines = engine(work, lambda lines: lines[-1].get("phase") == "exporting", signal.SIGTERM)
    assert code == STOPPED and of(lines, "error") == []
    assert not (work / "result.json").exists()
    # After the first cuts, after the second ones, and when all training was over.
    assert [line["name"] for line in of(lines, "checkpoint")] == ["000001", "000002", "000003"]
    resumed = handed_over(newest(work), prepared(tmp_path / "resumed", whole.case, whole.inputs))
    lines = carry_out(resumed)
    assert of(lines, "metric") == [] and artifacts(resumed) == whole.digests


def test_a_job_goes_on_where_no_checkpoint_can_be_written(tmp_path: Path) -> None:
    whole = unbroken("zeros that stay", tmp_path)
    work = prepared(tmp_path / "full", whole.case, whole.inputs)
    (work / "checkpoints").write_text("in the way")
    events = {line["event"] for line in of(carry_out(work), "event")}
    assert "checkpoint.failed" in events and artifacts(work) == whole.digests


def test_a_job_without_data_writes_none(tmp_path: Path) -> None:
    case = CASES["zeros that stay"]
    case.inputs(tmp_path / "inputs")
    pruning = {"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}]}
    work = prepared(tmp_path / "work", Case(case.inputs, {"pruning": pruning}), tmp_path / "inputs")
    for file in (work / "in" / "dataset").iterdir():
        file.unlink()
    assert of(carry_out(work, seconds=0.0), "checkpoint") == []
    assert not (work / "checkpoints").exists()
