"""Opaque, sortable, prefixed ids: `job_01J…`, time-ordered to the millisecond and monotonic within a process."""

import secrets
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """`prefix` and 26 characters of Crockford base 32: 48 bits of time, 80 bits of chance (the ULID layout)."""
    global _last  # noqa: PLW0603 - monotonic within the process, so that two ids of one millisecond keep their order
    with _lock:
        fresh = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
        _last = fresh if fresh >> 80 > _last >> 80 else _last + 1 + secrets.randbits(32)
        value = _last
    return _written(prefix, value)


def following(last: str) -> str:
    """The least id behind `last`, of the same prefix."""
    prefix, _, digits = last.rpartition("_")
    value = 0
    for digit in digits:
        value = value << 5 | _ALPHABET.index(digit)
    return _written(prefix, value + 1)


def earliest(prefix: str, seconds: float) -> str:
    """The least id that can be made at a time, in seconds since 1970."""
    return _written(prefix, int(seconds * 1000) << 80)


def _written(prefix: str, value: int) -> str:
    return f"{prefix}_" + "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -5, -5))


def made_at(id_: str) -> float:
    """When an id was made, in seconds since 1970. Raises `ValueError` for what is no id."""
    digits = id_.rpartition("_")[2]
    if len(digits) != 26 or not set(digits) <= set(_ALPHABET):
        raise ValueError("not an id")
    value = 0
    for digit in digits:
        value = value << 5 | _ALPHABET.index(digit)
    return (value >> 80) / 1000
