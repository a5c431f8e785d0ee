import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Invalid
from service.intake.names import member_name, shown


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("a", "a"),
        ("./a/b", "a/b"),
        ("././a", "a"),
        ("a/", "a"),
        ("./", ""),
        (".", ""),
        ("e\u0301", "\u00e9"),
        (".a", ".a"),
    ],
)
def test_names_have_one_form(raw: str, name: str) -> None:
    assert member_name(raw) == name


@given(st.text(max_size=60))
def test_what_passes_is_relative_and_visible(raw: str) -> None:
    try:
        name = member_name(raw)
    except Invalid as error:
        assert error.code == "ARCHIVE_NAME_REFUSED"
        assert error.detail.isascii()
        return
    assert not name.startswith("/")
    assert ".." not in name.split("/")
    assert "\\" not in name
    assert unicodedata.is_normalized("NFC", name)
    assert not any(unicodedata.category(character).startswith("C") and character.isascii() for character in name)


def test_shown_is_short_and_printable() -> None:
    assert len(shown("\u202e" * 1000)) < 600
    assert shown("a\nb").isprintable()
