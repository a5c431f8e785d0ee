"""docs/security.md: every row names tests that exist, or says why it does not apply."""

import re

import pytest

from tests.named_tests import ROOT, assert_numbered, assert_settings_exist, named_tests

TEXT = (ROOT / "docs" / "security.md").read_text()
ROWS = re.findall(r"^\| ([A-Z]\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", TEXT, flags=re.MULTILINE)


def test_the_rows_are_found_and_numbered() -> None:
    assert_numbered([row[0] for row in ROWS], TEXT, "MAWJ", more_than=45)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_closed_by_tests_that_exist(row: tuple[str, str, str, str]) -> None:
    _, attack, defence, closed_by = row
    struck = attack.startswith("~~") and attack.endswith("~~")
    assert defence.startswith("does not apply") is struck
    assert named_tests(closed_by) or struck, "a row without a test proves nothing"


def test_the_settings_exist() -> None:
    assert_settings_exist(TEXT)
