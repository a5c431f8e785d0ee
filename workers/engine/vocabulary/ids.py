"""Token ids in settings: finding them, and giving them their new numbers."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Renumber: TypeAlias = Callable[[int], int | None]
"""From an old id to the new one, None where the token is gone."""

SEQUENCES = frozenset({"bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens"})


def holds_ids(key: Any) -> bool:
    """Whether a setting of a config or of generation is a token id, or lists of them; labels have keys of their own."""
    return isinstance(key, str) and (key.endswith("_token_id") or key in SEQUENCES)


def renumbered(value: Any, renumber: Renumber) -> Any:
    """An id or (nested) list of ids with new numbers; a list loses what is gone, and is None once it is empty.

    A sequence of a list of sequences goes as a whole: the rest of a bad word is not bad. Ids below 0 mean no token.
    """
    if not isinstance(value, list):
        return renumber(value) if isinstance(value, int) and value >= 0 else value
    items = [renumbered(item, renumber) for item in value]
    kept = [
        new
        for old, new in zip(value, items, strict=True)
        if new is not None and not (isinstance(old, list) and len(new) < len(old))
    ]
    return kept or None


def ids_in(settings: Mapping[str, Any]) -> set[int]:
    """Every token id that a config or settings of generation name, in those of its parts as well."""
    found: set[int] = set()

    def note(token: int) -> int:
        found.add(token)
        return token

    for key, value in settings.items():
        if holds_ids(key):
            renumbered(value, note)
        elif isinstance(value, Mapping):
            found |= ids_in(value)
    return found
