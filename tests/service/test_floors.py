"""A package with a known hole stops the start, and its message says what to do."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import floors
from service.cli import app
from service.floors import FLOORS, VulnerablePackage, check


def _only(package: str, version: str) -> None:
    def version_of(name: str) -> str:
        if name != package:
            raise metadata.PackageNotFoundError(name)
        return version

    check(version_of)


def test_what_is_installed_here_will_do() -> None:
    check()


@pytest.mark.parametrize("version", ["2.10.0", "2.10", "2.13.0+cpu", "3.0.0a1", "10.0"])
def test_versions_from_the_floor_on_will_do(version: str) -> None:
    _only("torch", version)


@pytest.mark.parametrize("version", ["2.9.1", "2.9", "2", "1.13.1+cu117", "0", "unknown"])
def test_versions_below_it_are_named(version: str) -> None:
    with pytest.raises(VulnerablePackage) as refused:
        _only("torch", version)
    assert str(refused.value).startswith(f"torch {version} is installed, at least 2.10.0 is needed (CVE-")


def test_all_of_them_are_named() -> None:
    with pytest.raises(VulnerablePackage) as refused:
        check(lambda _: "0.0.1")
    assert all(f"{package} 0.0.1" in str(refused.value) for package in FLOORS)


@pytest.mark.parametrize("command", ["up", "api", "worker"])
def test_nothing_starts_on_a_hole(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setitem(floors.FLOORS, "starlette", ((99, 0, 0), "a hole"))
    refused = CliRunner().invoke(app, [command])
    assert refused.exit_code == 2
    assert "at least 99.0.0 is needed (a hole)" in refused.output


@pytest.mark.parametrize(
    ("command", "package", "version"), [("api", "python-multipart", "0.0.26"), ("worker", "jinja2", "3.1.5")]
)
def test_nothing_starts_where_an_older_version_is_installed(
    tmp_path: Path, command: str, package: str, version: str
) -> None:
    told = tmp_path / "older" / f"{package.replace('-', '_')}-{version}.dist-info" / "METADATA"
    told.parent.mkdir(parents=True)
    told.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "older"), "SECATEUR_DATA_DIR": str(tmp_path / "data")}
    started = [sys.executable, "-m", "service.cli", command]
    refused = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2, refused.stderr
    assert f"{package} {version} is installed, at least" in refused.stderr
    assert not (tmp_path / "data").exists(), "refused before anything was done"
