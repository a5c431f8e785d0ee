"""The package without the worker's extra: it serves the API where no machine learning is installed."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "sklearn", "matplotlib")
SERVES = f"""
import sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here")

sys.meta_path.insert(0, NotInstalled())
from fastapi.testclient import TestClient
from service.app import create_app
from service.cli import app
from service.config import Settings
from service.migrate import upgrade

settings = Settings(data_dir={{folder!r}})
upgrade(settings.database)
with TestClient(create_app(settings), base_url="http://127.0.0.1:8400") as client:
    print(client.get("/healthz").json()["status"], client.get("/v1/models").status_code)
"""


def test_the_api_serves_without_any_machine_learning(tmp_path: Path) -> None:
    script = SERVES.replace("{folder!r}", repr(str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["ok", "401"], done.stderr


def test_heavy_packages_come_with_the_workers_extra_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = " ".join(project["dependencies"])
    assert not [name for name in HEAVY if name in plain]
    assert {"torch", "transformers", "onnxruntime"} <= {
        line.split(">")[0] for line in project["optional-dependencies"]["worker"]
    }


def test_what_is_not_python_is_in_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    patterns = {pattern.removeprefix("*") for pattern in declared}
    for folder in ("service", "workers", "migrations"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.suffix == ".py" or path.name in patterns or path.suffix in patterns, path
