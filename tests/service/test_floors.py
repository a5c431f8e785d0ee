"""A package with a known hole stops the start, and its message says what to do."""

from importlib import metadata

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
