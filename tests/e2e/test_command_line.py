"""`secateur` as a user runs it: real processes, a real service, exit codes and files."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Workplace

SPEC: dict[str, Any] = {
    "name": "command-line",
    "task": "text-classification",
    "baseline": {"epochs": 1, "learning_rate": 1e-3},
    "pruning": {"cuts": [{"structure": "layers", "ratio": 0.5, "criterion": {"kind": "similarity"}}]},
    "acceptance": [{"metric": "parameters", "max_ratio": 0.01}],
    "benchmark": {"batch_sizes": [1], "sequence_length": 16},
}


def write(place: Workplace, name: str, spec: dict[str, Any]) -> str:
    """A spec file in the user's folder."""
    (place.folder / name).write_text(json.dumps(spec))
    return name


def test_run_leaves_model_and_report_after_a_missed_goal_too(workplace: Workplace) -> None:
    spec = write(workplace, "missed.json", SPEC)
    order = ("--model", "encoder", "--dataset", "data", "--spec", spec, "--out", "missed")
    done = workplace.secateur("run", *order)
    assert done.returncode == 4, done.stderr
    out = workplace.folder / "missed"
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert (out / "model.safetensors").exists()
    assert "<html" in (out / "report.html").read_text()
    assert "MISSED  parameters" in done.stdout
    assert done.stdout.splitlines()[-1] == "missed"
    assert "\x1b" not in done.stdout + done.stderr, "no terminal, so plain lines"
    assert "rejected" in done.stderr
    assert workplace.secateur("run", *order).returncode == 2, "the folder is not empty now"


def test_push_submit_watch_list_show_metrics_pull(workplace: Workplace) -> None:
    model = json.loads(workplace.secateur("models", "push", "encoder", "--json").stdout)
    assert (model["state"], model["family"]) == ("ready", "bert")
    dataset = workplace.secateur("datasets", "push", "data", "--name", "tiny").stdout.strip()
    spec = SPEC | {"model_id": model["id"], "dataset_id": dataset, "acceptance": []}
    file = write(workplace, "submitted.json", spec)
    configuration = json.loads(workplace.secateur("jobs", "submit", file, "--validate-only").stdout)["configuration"]
    assert configuration["seed"] == 0
    job = workplace.secateur("jobs", "submit", file).stdout.strip()
    watched = workplace.secateur("jobs", "watch", job, "--json")
    assert watched.returncode == 0, watched.stderr
    finished = json.loads(watched.stdout)
    assert (finished["id"], finished["status"]) == (job, "succeeded")
    assert job in workplace.secateur("jobs", "list", "--status", "succeeded").stdout
    shown = json.loads(workplace.secateur("jobs", "show", job, "--json").stdout)
    assert shown["result"]["after"]["structure"]["layers"] == 1
    assert "accuracy" in workplace.secateur("jobs", "show", job).stdout
    assert "baseline/loss" in workplace.secateur("jobs", "metrics", job).stdout
    assert "job.succeeded" in workplace.secateur("jobs", "events", job).stdout
    pruned = shown["result"]["model_id"]
    assert pruned in workplace.secateur("models", "list").stdout
    pulled = workplace.secateur("models", "pull", pruned, "pulled")
    assert pulled.returncode == 0, pulled.stderr
    assert (workplace.folder / "pulled" / "model.safetensors").exists()
    assert workplace.secateur("jobs", "cancel", job).returncode == 2, "it has ended already"


def test_a_refused_order_names_the_field_and_ends_with_2(workplace: Workplace) -> None:
    spec = write(workplace, "refused.json", SPEC | {"model_id": "mdl_" + "0" * 26, "surprise": 1})
    done = workplace.secateur("jobs", "submit", spec)
    assert done.returncode == 2
    assert "/surprise" in done.stderr
    told = json.loads(workplace.secateur("jobs", "submit", spec, "--json").stderr)
    assert any(field["pointer"] == "/surprise" for field in told["error"]["errors"])


def test_a_second_service_on_the_same_folder_says_so(workplace: Workplace) -> None:
    done = workplace.secateur("up", "--port", "1")
    assert done.returncode != 0
    assert "already running" in done.stderr


def test_a_terminal_gets_a_bar(workplace: Workplace) -> None:
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).parent / "secateur"), "models", "push", "encoder"]
    environment = workplace.environment | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=workplace.folder, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    out, _ = process.communicate()
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert out.decode().startswith("mdl_")
    assert "━" in seen
