import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.intake.strict_json import JsonRefused, loads


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "a": 2}}', "twice"),
        (b"NaN", "NaN"),
        (b"-Infinity", "NaN"),
        (b"1e999", "range"),
        (b"1" * 5000, "range"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\u0000": 1}', "NUL"),
        (b"\xff", "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"[" * 100_000, "deep"),
        (b"[" * 34 + b"]" * 34, "deep"),
        (b"", "JSON"),
        (b"{} {}", "JSON"),
        (b"{'a': 1}", "JSON"),
    ],
)
def test_what_a_lenient_parser_takes_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(JsonRefused, match=why):
        loads(data)


def test_depth_is_counted_in_levels() -> None:
    assert loads(b"[" * 32 + b"]" * 32)
    assert loads(b'{"a": [1]}', depth=2) == {"a": [1]}
    with pytest.raises(JsonRefused):
        loads(b'{"a": [1]}', depth=1)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(_JSON)
def test_plain_json_passes(value: Any) -> None:
    data = json.dumps(value).encode()
    if b"\\u0000" in data.replace(b"\\\\", b""):
        return
    assert loads(data) == value
