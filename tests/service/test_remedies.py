"""Every error that a job can end with says what to do."""

import ast
from pathlib import Path

from service.remedies import REMEDIES, remedy

WORKERS = Path(__file__).parents[2] / "workers"
RAISED = {"EngineError", "JobFailed"}


def codes() -> set[str]:
    """Codes of errors that workers and engines raise, as their sources name them."""
    found: set[str] = set()
    for path in WORKERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    found.add(str(code.value))
    return found


def test_every_code_has_a_remedy_and_every_remedy_a_code() -> None:
    assert codes() | {"CRASH_LOOP"} == set(REMEDIES)


def test_a_remedy_is_one_sentence() -> None:
    for text in REMEDIES.values():
        assert text[0].isupper() and text.endswith(".") and text.count(". ") == 0


def test_a_code_that_is_not_known_has_none() -> None:
    assert remedy("NEW_IN_A_LATER_ENGINE") is None
