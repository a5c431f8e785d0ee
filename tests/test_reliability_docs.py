"""docs/reliability.md: every row names tests that exist."""

import re

import pytest

from service.config import Settings
from tests.named_tests import ROOT, named_tests

TEXT = (ROOT / "docs" / "reliability.md").read_text()
LETTERS = "PNJDE"
ROWS = re.findall(rf"^\| ([{LETTERS}]\d+) \| .+? \| .+? \| (.+?) \|$", TEXT, flags=re.MULTILINE)


def test_the_rows_are_found_and_numbered() -> None:
    numbers = [number for number, _ in ROWS]
    counts = {letter: sum(number[0] == letter for number in numbers) for letter in LETTERS}
    assert numbers == [f"{letter}{number}" for letter, count in counts.items() for number in range(1, count + 1)]
    assert len(numbers) == len(re.findall(rf"^\| [{LETTERS}]\d", TEXT, flags=re.MULTILINE)) > 35


@pytest.mark.parametrize(("number", "proved_by"), ROWS, ids=[number for number, _ in ROWS])
def test_a_row_is_proved_by_tests_that_exist(number: str, proved_by: str) -> None:
    assert named_tests(proved_by), f"{number} names no test"


def test_the_settings_exist() -> None:
    named = {name.lower() for name in re.findall(r"SECATEUR_([A-Z_]+)", TEXT)}
    assert named and named <= set(Settings.model_fields)
