"""Tests that a document names, as `file::function` in backquotes, must exist."""

import ast
import re
from functools import cache
from pathlib import Path

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
