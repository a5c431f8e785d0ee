"""The rules of the house, checked by a machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer.main
import yaml

from service import specs
from service.cli import app
from service.config import Settings
from service.migrate import configuration
from workers.engine.criteria import CRITERIA
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES
from workers.engine.structures import STRUCTURES
from workers.engine.tasks import TASKS

ROOT = Path(__file__).parents[1]
PRODUCT = ("service", "workers", "migrations", "docs/demo")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "core", "misc", "managers", "base_service"}
UNSAFE = {
    "extractall", "load_dataset", "torch.load", "torch.jit.load", "torch.export.load", "pickle.load", "pickle.loads",
    "joblib.load", "shelve.open", "marshal.loads", "yaml.load", "eval", "exec",
}  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """Python files of the project, the tests' included when asked for."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parsed(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Files with their syntax trees."""
    for path in sources(*folders):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's function; what is no name in it is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_a_fresh_interpreter_that_imports_the_service_has_no_torch() -> None:
    script = (
        "import sys, service.app, service.cli\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'onnxruntime', 'workers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_one_place_commits() -> None:
    committing = {
        path.as_posix()
        for path, tree in parsed(*PRODUCT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit"
    }
    assert committing == {"service/db.py"}


def test_the_environment_is_read_in_one_place() -> None:
    reading = {
        path.as_posix()
        for path, tree in parsed("service", "workers", "migrations")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and "environ" in {a.name for a in node.names})
    }
    assert reading <= {"service/config.py"}


@pytest.mark.parametrize("folders", [PRODUCT, ("tests",)], ids=["product", "tests"])
def test_files_and_functions_are_short(folders: tuple[str, ...]) -> None:
    long = [f"{p.relative_to(ROOT)}" for p in sources(*folders) if len(p.read_text().splitlines()) > MAX_FILE_LINES]
    long += [
        f"{path}: {node.name}"
        for path, tree in parsed(*folders)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_unsafe_loaders_are_nowhere() -> None:
    found = [
        f"{path}:{node.lineno} {name}"
        for path, tree in parsed(*PRODUCT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for name in [dotted(node.func)]
        if name in UNSAFE or name.split(".")[-1] in ("extractall", "load_dataset", "apply_chat_template", "from_string")
    ]
    found += [
        f"{path} imports {name}"
        for path, tree in parsed(*PRODUCT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in ("pickle", "joblib", "dill", "shelve", "marshal", "datasets")
    ]
    assert found == []


@pytest.mark.parametrize("file", ["auth.py", "callers.py", "deps.py", "webhooks/signing.py", "commands/deploy.py"])
def test_secrets_are_compared_in_constant_time(file: str) -> None:
    tree = ast.parse((ROOT / "service" / file).read_text())
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    secret = re.compile(r"^(?!zlib.crc32|.* is (not )?None$).*(sha256|digest|secret|plaintext|authorization)", re.I)
    assert [comparison for comparison in compared if secret.match(comparison)] == []
    if file == "auth.py":
        assert "hmac.compare_digest(" in ast.unparse(tree)


def test_no_module_is_a_drawer_for_everything() -> None:
    named = {path.stem for path in sources(*PRODUCT, "tests")}
    named |= {part for path in sources(*PRODUCT, "tests") for part in path.relative_to(ROOT).parts[:-1]}
    assert named & FORBIDDEN_NAMES == set()


def test_specs_and_registries_agree() -> None:
    union = get_args(get_args(specs.Criterion)[0])
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in union}
    assert kinds == set(CRITERIA)
    assert set().union(*specs.CRITERIA_OF.values()) == set(CRITERIA)
    assert set(get_args(specs.StructureName)) == set(specs.CRITERIA_OF) == {*STRUCTURES, "vocabulary"}
    assert set(get_args(specs.ExportName)) == set(EXPORTERS)
    assert set(get_args(specs.TaskName)) == set(specs.QUALITY_METRICS) == set(TASKS)


def test_catalogue_and_families_agree() -> None:
    from service import catalog

    assert set(catalog.FAMILIES) == set(FAMILIES)
    for family in catalog.FAMILIES.values():
        assert set(family.structures) <= {*STRUCTURES, "vocabulary"}
        assert set(family.exports) <= set(EXPORTERS)


def test_history_has_one_head() -> None:
    from alembic.script import ScriptDirectory

    assert len(ScriptDirectory.from_config(configuration()).get_heads()) == 1


# The README


def readme_block(after: str) -> list[str]:
    """Lines of the first fenced block below a heading."""
    text = (ROOT / "README.md").read_text().split(after)[1]
    return text.split("```")[1].splitlines()[1:]


def test_the_readmes_tree_is_true() -> None:
    above: list[str] = []
    for line in readme_block("## How it is built"):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        path = ROOT.joinpath(*above)
        assert path.is_dir() if name.endswith("/") else path.is_file(), path


def command_names() -> set[str]:
    """`secateur x` and `secateur x y`."""
    names = set()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined] # Typer types a group as a command
        names.add(name)
        names |= {f"{name} {inner}" for inner in getattr(command, "commands", {})}
    return names


def test_the_readmes_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert named and named <= targets
    commands = set(re.findall(r"secateur (keys create|up|run|api|worker|migrate)\b", text))
    assert {"up", "run", "api", "worker", "migrate", "keys create"} == commands
    assert commands <= command_names()


def test_the_command_line_has_every_command_of_the_contract() -> None:
    models, datasets = ("push", "pull", "list", "show"), ("push", "list", "show")
    jobs = ("submit", "watch", "cancel", "list", "show", "metrics")
    wanted = {"up", "run", "api", "worker", "migrate", "keys create"}
    wanted |= {f"models {name}" for name in models} | {f"datasets {name}" for name in datasets}
    assert wanted | {f"jobs {name}" for name in jobs} <= command_names()


def test_the_commit_hooks_run_what_make_lint_runs_and_need_no_network() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    entries = [hook["entry"] for hook in repositories[0]["hooks"]]
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    linted = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe.splitlines()[1:]]
    assert [entry.replace(" --force-exclude", "") for entry in entries] == linted


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    index = (folder / "README.md").read_text()
    for name in pages:
        assert f"({name})" in index
        text = (folder / name).read_text()
        assert "**Decision.**" in text and "**Enforced by.**" in text
        for mentioned in re.findall(r"`((?:service|workers|tests|docs|migrations)/[\w/.]+)`", text):
            assert (ROOT / mentioned).exists(), f"{name} names {mentioned}"


def test_every_setting_is_described_or_plain() -> None:
    undescribed = {name for name, field in Settings.model_fields.items() if not field.description}
    assert undescribed <= {"host", "port", "max_json_bytes", "disk_reserve_bytes", "max_attempts", "log_level"}
