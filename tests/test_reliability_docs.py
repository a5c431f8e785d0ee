"""docs/reliability.md: every row names tests that exist."""

import re

import pytest

from tests.named_tests import ROOT, assert_numbered, assert_settings_exist, named_tests

TEXT = (ROOT / "docs" / "reliability.md").read_text()
LETTERS = "PNJDE"
ROWS = re.findall(rf"^\| ([{LETTERS}]\d+) \| .+? \| .+? \| (.+?) \|$", TEXT, flags=re.MULTILINE)


def test_the_rows_are_found_and_numbered() -> None:
    assert_numbered([number for number, _ in ROWS], TEXT, LETTERS, more_than=35)


@pytest.mark.parametrize(("number", "proved_by"), ROWS, ids=[number for number, _ in ROWS])
def test_a_row_is_proved_by_tests_that_exist(number: str, proved_by: str) -> None:
    assert named_tests(proved_by), f"{number} names no test"


def test_the_settings_exist() -> None:
    assert_settings_exist(TEXT)
