"""docs/security.md: every row names tests that exist, or says why it does not apply."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from service.config import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text()
ROWS = re.findall(r"^\| ([A-Z]\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", TEXT, flags=re.MULTILINE)


@cache
def functions_of(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_rows_are_found_and_numbered() -> None:
    numbers = [row[0] for row in ROWS]
    counts = {letter: sum(number[0] == letter for number in numbers) for letter in "MAWJ"}
    assert numbers == [f"{letter}{number}" for letter, count in counts.items() for number in range(1, count + 1)]
    assert len(numbers) == len(re.findall(r"^\| [MAWJ]\d", TEXT, flags=re.MULTILINE)) > 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_closed_by_tests_that_exist(row: tuple[str, str, str, str]) -> None:
    _, attack, defence, closed_by = row
    struck = attack.startswith("~~") and attack.endswith("~~")
    assert defence.startswith("does not apply") is struck
    named = re.findall(r"`([^`]+)`", closed_by)
    assert named or struck, "a row without a test proves nothing"
    for name in named:
        file, _, function = name.partition("::")
        assert function.startswith("test_") and function in functions_of(file), name


def test_the_settings_exist() -> None:
    named = {name.lower() for name in re.findall(r"SECATEUR_([A-Z_]+)", TEXT)}
    assert named and named <= set(Settings.model_fields)
