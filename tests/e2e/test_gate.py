"""The gate of `docs/ci` against a real service: the script in any shell, and the step of the composite action."""

import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Workplace

CI = Path(__file__).parents[2] / "docs" / "ci"
SPEC: dict[str, Any] = {
    "name": "gate",
    "task": "text-classification",
    "baseline": {"epochs": 1, "learning_rate": 1e-3},
    "pruning": {"cuts": [{"structure": "layers", "ratio": 0.5, "criterion": {"kind": "similarity"}}]},
    "benchmark": {"batch_sizes": [1], "sequence_length": 16},
}
MET, MISSED = {"metric": "parameters", "max_ratio": 0.99}, {"metric": "parameters", "max_ratio": 0.01}


def told(place: Workplace, out: str, *goals: dict[str, Any]) -> dict[str, str]:
    """The environment of a gate with these goals."""
    (place.folder / "gate.json").write_text(json.dumps(SPEC | {"acceptance": list(goals)}))
    return place.environment | {"MODEL": "encoder", "DATASET": "data", "SPEC": "gate.json", "OUT": out}


def cases(file: Path) -> list[tuple[str | None, bool]]:
    """Names of the test cases, and whether each failed."""
    return [(case.get("name"), case.find("failure") is not None) for case in ET.parse(file).iter("testcase")]


@pytest.mark.parametrize(
    ("goals", "code", "failed"), [([MET], 0, [False]), ([MET, MISSED], 4, [False, True])], ids=["met", "missed"]
)
def test_the_script_says_yes_or_no(
    workplace: Workplace, goals: list[dict[str, Any]], code: int, failed: list[bool]
) -> None:
    out = workplace.folder / f"gate-{code}"
    done = subprocess.run(
        [CI / "gate.sh"], cwd=workplace.folder, env=told(workplace, out.name, *goals), capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    names = [f"parameters: max_ratio {goal['max_ratio']}" for goal in goals]
    assert cases(out / "junit.xml") == list(zip(names, failed, strict=True))
    summary = (out / "summary.md").read_text()
    assert f"### Secateur: gate {'rejected' if code else 'accepted'}" in summary
    assert ("**missed**" in summary) == (code == 4)
    assert "| parameters |" in summary
    assert (out / "model" / "model.safetensors").exists() and (out / "model" / "report.html").exists()


def test_the_actions_step_tells_id_verdict_and_summary(workplace: Workplace) -> None:
    steps = yaml.safe_load((CI / "action.yml").read_text())["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("id") == "gate")
    files = {"GITHUB_STEP_SUMMARY": "step-summary.md", "GITHUB_OUTPUT": "step-output"}
    environment = told(workplace, "action", MISSED) | files
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=workplace.folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    outputs = dict(line.split("=", 1) for line in (workplace.folder / "step-output").read_text().splitlines())
    job = json.loads((workplace.folder / "action" / "job.json").read_text())["job"]
    assert outputs == {"job-id": job["id"], "verdict": "rejected"}
    assert "### Secateur: gate rejected" in (workplace.folder / "step-summary.md").read_text()


def test_a_service_that_is_away_is_neither_yes_nor_no(workplace: Workplace) -> None:
    away = {"SECATEUR_URL": "http://127.0.0.1:1", "SECATEUR_API_KEY": "sct_none"}
    environment = told(workplace, "away", MET) | away
    done = subprocess.run([CI / "gate.sh"], cwd=workplace.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert not (workplace.folder / "away" / "junit.xml").exists()
