"""The stand-alone script's own arithmetic; that it runs in a fresh process is shown by test_verification."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from workers.engine import memory, verify


def test_error_is_relative_to_the_centred_logits() -> None:
    expected = np.array([[3.0, 1.0], [0.0, 2.0]])
    assert verify.relative_error(expected, expected) == 0.0
    assert verify.relative_error(expected + 5.0, expected) == pytest.approx(0.0, abs=1e-12)
    assert verify.relative_error(expected * 2, expected) == pytest.approx(1.0)


def test_error_of_a_single_label_is_not_centred_away() -> None:
    assert verify.relative_error(np.array([[2.0]]), np.array([[1.0]])) == pytest.approx(1.0)


def test_agreement_counts_only_clear_rows() -> None:
    expected = np.array([[4.0, 0.0], [0.0, 3.0], [0.1, 0.0]])
    near_tie_flips = np.array([[4.0, 0.0], [0.0, 3.0], [0.0, 0.1]])
    clear_one_flips = np.array([[0.0, 4.0], [0.0, 3.0], [0.1, 0.0]])
    assert verify.agreement(near_tie_flips, expected) == 1.0
    assert verify.agreement(clear_one_flips, expected) == 0.5


def test_tokens_are_rows_and_outputs_of_different_widths_are_single_values() -> None:
    assert verify.as_rows([np.zeros((2, 5, 7)), np.ones((3, 4, 7))]).shape == (2 * 5 + 3 * 4, 7)
    assert verify.as_rows([np.zeros((2, 5)), np.ones((2, 5)), np.zeros((3, 4))]).shape == (10 + 10 + 12, 1)


@pytest.mark.parametrize("script", [verify, memory])
def test_scripts_import_nothing_of_ours(script: object) -> None:
    allowed = {"torch", "transformers", "onnxruntime", "safetensors", "numpy"} | set(sys.stdlib_module_names)
    tree = ast.parse(Path(str(script.__file__)).read_text())  # type: ignore[attr-defined]
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= allowed
