"""JSON as RFC 8259 and RFC 7493 have it, bounded: what a lenient parser lets through is refused here."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 32
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class JsonRefused(ValueError):
    """Not JSON that we take; the text says why and repeats nothing."""


def loads(data: bytes, *, depth: int = MAX_DEPTH) -> Any:
    """Parse UTF-8 JSON. Raises `JsonRefused` for malformed or deeply nested text, duplicate names, NaN, infinity,
    lone surrogates, NUL and numbers out of range."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant, parse_float=_finite)
    except JsonRefused:
        raise
    except UnicodeDecodeError as error:
        raise JsonRefused("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise JsonRefused(f"is not JSON (column {error.colno})") from error
    except RecursionError as error:
        raise JsonRefused("is nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise JsonRefused("has a number out of range") from error
    _check(value, depth)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ. Raises `JsonRefused`."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise JsonRefused("has a name twice in one object")
    return result


def plain(text: str) -> bool:
    """Whether a string can be stored and sent everywhere: no NUL, no lone surrogate."""
    return _UNSTORABLE.search(text) is None


def _no_constant(name: str) -> float:
    raise JsonRefused("has NaN or an infinite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonRefused("has a number out of range")
    return value


def _check(value: Any, depth: int) -> None:
    level = [value]
    for _ in range(depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str) and not plain(item):
                raise JsonRefused("has NUL or a lone surrogate in a string")
            if isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise JsonRefused(f"is nested more than {depth} levels deep")
