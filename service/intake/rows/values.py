"""Single values of a row, and what all rows must agree on."""

from typing import Any

from service.intake.rows.lines import MAX_FIELD, Fault
from service.intake.strict_json import plain

MAX_LABELS = 100_000
MAX_LABEL = 256
MAX_ITEMS = 10_000
MAX_SCORE = 1e9


def text(value: Any, column: str) -> str:
    """A string that can be stored and sent. Raises `Fault`."""
    if not isinstance(value, str):
        raise Fault(f"{column} must be a string", column)
    if len(value.encode("utf-8", "surrogatepass")) > MAX_FIELD:
        raise Fault(f"{column} holds at most {MAX_FIELD} bytes", column)
    if not plain(value):
        raise Fault(f"{column} has NUL or a lone surrogate", column)
    return value


def items(value: Any, column: str, least: int = 1) -> list[Any]:
    """A list of `least` to MAX_ITEMS values. Raises `Fault`."""
    if not isinstance(value, list) or not least <= len(value) <= MAX_ITEMS:
        raise Fault(f"{column} must be a list of {least} to {MAX_ITEMS}", column)
    return value


def label(value: Any, column: str) -> int | str:
    """A label by its index or its name. Raises `Fault`."""
    if type(value) is int and 0 <= value < MAX_LABELS:
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable():
        return value
    raise Fault(
        f"{column} must be an integer from 0 to {MAX_LABELS - 1}, or a name of 1 to {MAX_LABEL} printable characters",
        column,
    )


def score(value: Any) -> float:
    """A finite number. Raises `Fault`."""
    if type(value) not in (int, float) or abs(value) > MAX_SCORE:
        raise Fault(f"score must be a number from -{MAX_SCORE:g} to {MAX_SCORE:g}", "score")
    return float(value)


class Labels:
    """The labels of a data set so far: all names or all integers."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.highest: int | None = None

    def add(self, given: int | str, column: str) -> None:
        """Raises `Fault` for a label of the other kind."""
        if isinstance(given, str):
            self.names.add(given)
        else:
            self.highest = max(given, self.highest or 0)
        if self.names and self.highest is not None:
            raise Fault("labels must be all names or all integers, in every split", column)
        if len(self.names) > MAX_LABELS:
            raise Fault(f"there are more than {MAX_LABELS} different labels", column)

    def summary(self) -> dict[str, Any]:
        """As the data set's row keeps it."""
        return {"names": sorted(self.names) or None, "integers": self.highest}


class Everywhere:
    """Whether a column stands in the rows: in all of them or in none."""

    def __init__(self, column: str) -> None:
        self._column = column
        self.there: bool | None = None

    def add(self, there: bool) -> None:
        """Raises `Fault` for a row that differs from the first."""
        if self.there is None:
            self.there = there
        if self.there != there:
            raise Fault(f"{self._column} must stand in every row or in none", self._column)
