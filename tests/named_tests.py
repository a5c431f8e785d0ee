"""What documents with rows name must exist: tests, as `file::function` in backquotes, and settings."""

import ast
import re
from functools import cache
from pathlib import Path

from service.config import Settings

ROOT = Path(__file__).parents[1]


@cache
def functions_of(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def named_tests(cell: str) -> list[str]:
    """What a cell of a table names, each checked to be a test that exists."""
    named = re.findall(r"`([^`]+)`", cell)
    for name in named:
        file, _, function = name.partition("::")
        assert function.startswith("test_") and function in functions_of(file), name
    return named


def assert_numbered(numbers: list[str], text: str, letters: str, more_than: int) -> None:
    """The rows that were found are all there are, and in each section, which has a letter, numbered from 1 on."""
    counts = {letter: sum(number[0] == letter for number in numbers) for letter in letters}
    assert numbers == [f"{letter}{number}" for letter, count in counts.items() for number in range(1, count + 1)]
    assert len(numbers) == len(re.findall(rf"^\| [{letters}]\d", text, flags=re.MULTILINE)) > more_than


def assert_settings_exist(text: str) -> None:
    """A document names settings, all of which there are."""
    named = {name.lower() for name in re.findall(r"SECATEUR_([A-Z_]+)", text)}
    assert named and named <= set(Settings.model_fields)
