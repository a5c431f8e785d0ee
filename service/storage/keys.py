"""What every kind of storage has in common: the names of files, and what can be wrong with a name or an address."""

import re

_KEY = re.compile(r"[^/\x00]+(/[^/\x00]+)*")


class StorageMissing(KeyError):
    """No file has this key."""


class UnusableStorage(ValueError):
    """A storage URL that cannot be used; the text says what to change."""


def checked(key: str) -> str:
    """A key that stays below the root of its storage. Raises `ValueError` for any other."""
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise ValueError("a key is relative, without . and ..")
    return key
