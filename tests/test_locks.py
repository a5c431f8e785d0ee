"""docs/locks: what the images install satisfies our ranges and floors, and is held to by hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from service.floors import FLOORS, check

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "docs" / "locks"
NAMES = ("build", "api", "worker", "torch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PLAIN = PROJECT["project"]["dependencies"] + EXTRAS["s3"]
ROOTS = {
    "build": PROJECT["dependency-groups"]["build"],
    "api": PLAIN,
    "worker": [line for line in PLAIN + EXTRAS["worker"] if not line.startswith("torch>")],
    "torch": [line for line in EXTRAS["worker"] if line.startswith("torch>")],
}
"""By lock: the requirements that it is made from."""


def entries(name: str) -> list[tuple[Requirement, list[str], set[str]]]:
    """Of each entry of a lock: what is required, its hashes, and what asks for it."""
    text = (LOCKS / f"{name}.txt").read_text()
    blocks = re.split(r"\n(?=[^\s#])", text)[1:]
    found = []
    for block in blocks:
        head, *rest = block.splitlines()
        asking = {line.strip("# ").removeprefix("via").strip() for line in rest if line.strip().startswith("#")} - {""}
        found.append((Requirement(head.rstrip("\\ ")), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block), asking))
    return found


def versions(name: str) -> dict[str, list[Version]]:
    """By package: its versions, of which markers choose one."""
    found: dict[str, list[Version]] = {}
    for required, _, _ in entries(name):
        (pin,) = required.specifier
        found.setdefault(canonicalize_name(required.name), []).append(Version(pin.version))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_a_pin_or_a_hash(name: str) -> None:
    pin = r"[a-z0-9-]+==[\w.]+( ; [^\\]+)? \\"
    line = re.compile(rf"{pin}|    --hash=sha256:[0-9a-f]{{64}}( \\)?| *#.*")
    text = (LOCKS / f"{name}.txt").read_text()
    assert [told for told in text.splitlines() if not line.fullmatch(told)] == []
    assert entries(name) and all(hashes for _, hashes, _ in entries(name))
    assert "://" not in text and "make lock" in text.splitlines()[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_we_require_is_locked_within_its_range(name: str) -> None:
    locked = versions(name)
    for line in ROOTS[name]:
        required = Requirement(line)
        found = locked[canonicalize_name(required.name)]
        assert all(required.specifier.contains(version) for version in found), line


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_named(name: str) -> None:
    ours = {"secateur (pyproject.toml)", "secateur (pyproject.toml:build)", "-c docs/locks/worker.txt"}
    named, required = set(versions(name)), {canonicalize_name(Requirement(line).name) for line in ROOTS[name]}
    for entry, _, asking in entries(name):
        assert asking - ours <= named, entry
        assert asking - ours or canonicalize_name(entry.name) in required, f"{entry} is asked for by nothing"


@pytest.mark.parametrize("name", NAMES)
def test_no_locked_version_has_a_known_hole(name: str) -> None:
    oldest = {package: str(min(found)) for package, found in versions(name).items()}
    check(lambda package: oldest.get(package, "99999"))


def test_every_floor_is_of_something_that_is_locked() -> None:
    assert set(FLOORS) <= {package for name in NAMES for package in versions(name)}


def test_the_locks_agree_with_each_other_and_with_torch_elsewhere() -> None:
    worker, api, torch = versions("worker"), versions("api"), versions("torch")
    assert all(worker[package] == found for package, found in api.items()), "one image is ahead of the other"
    assert all(worker[package] == found for package, found in torch.items() if package in worker)
    assert "torch" not in worker and not {"torch", "transformers", "numpy", "onnx"} & api.keys()
    for file in ("Dockerfile", "Makefile"):
        assert f"torch=={torch['torch'][0]}" in (ROOT / file).read_text()
