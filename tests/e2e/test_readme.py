"""The README's walk-through with curl, run as it stands beside a `secateur up`."""

import json
import re
import subprocess
from pathlib import Path

from tests.e2e.conftest import Workplace

README = Path(__file__).parents[2] / "README.md"
LOADS = """
import sys
from transformers import AutoModelForSequenceClassification
network = AutoModelForSequenceClassification.from_pretrained("pruned")
assert "service" not in sys.modules
print(network.config.intermediate_size)
"""


def walk_through() -> list[str]:
    """The fenced blocks of the section."""
    section = README.read_text().split("## Walk-through with curl")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)


def test_the_walk_through_works_as_printed(workplace: Workplace) -> None:
    blocks = walk_through()
    assert len(blocks) == 5
    told = {"MODEL_DIR": str(workplace.model), "DATA_DIR": str(workplace.dataset)}
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=workplace.folder, env=workplace.environment | told, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pruned.tar: OK" in done.stdout
    job = json.loads((workplace.folder / "job.json").read_text())
    assert job["status"] == "succeeded"
    assert job["result"]["verdict"][0]["passed"]
    pruned = workplace.folder / "pruned"
    before = json.loads((workplace.model / "config.json").read_text())["intermediate_size"]
    assert json.loads((pruned / "config.json").read_text())["intermediate_size"] == before // 2
    assert "<html" in (pruned / "report.html").read_text()
    assert (pruned / "onnx" / "model.onnx").exists()
    loaded = subprocess.run(
        ["python", "-I", "-c", LOADS], cwd=workplace.folder, env=workplace.environment, capture_output=True, text=True
    )
    assert loaded.stdout.strip() == str(before // 2), loaded.stderr
