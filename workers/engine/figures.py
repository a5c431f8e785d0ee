"""How figures are written for people: quantities in three digits, and each quality metric in its own unit."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.specs.goals import PERCENT

MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "exact_match": "Exact match",
    "f1": "F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "perplexity": "Perplexity",
    "spearman": "Spearman correlation",
    "agreement": "Cosine to the original",
}


@dataclass(frozen=True)
class Unit:
    """The unit of a metric: what its values are multiplied by, their digits, and what follows value and difference."""

    factor: int
    digits: int
    sign: str = ""
    points: str = ""

    def value(self, number: float, sign: str = "") -> str:
        """One value: `87.1 %`, `43.0`, `58.33`; `sign` "+" shows the sign of a positive one too."""
        return self._number(number, self.digits, sign) + self.sign

    def interval(self, low: float, high: float) -> str:
        """An interval, such as 85.0 to 88.9."""
        return f"{self._number(low, self.digits)} {DASH} {self._number(high, self.digits)}"

    def difference(self, number: float, sign: str = "") -> str:
        """A difference of two values: `0.52 points`; `sign` "+" shows the sign of a positive one too."""
        return self._number(number, max(self.digits, 2), sign) + self.points

    def bound(self, number: float) -> str:
        """A bound on values, as it was asked for: `80 %`, `60`."""
        return f"{number * self.factor:.10g}{self.sign}".replace("-", MINUS)

    def difference_bound(self, number: float) -> str:
        """A bound on differences, as it was asked for: `1.5 points`."""
        return f"{number * self.factor:.10g}{self.points}"

    def _number(self, number: float, digits: int, sign: str = "") -> str:
        return f"{number * self.factor:{sign}.{digits}f}".replace("-", MINUS)


SHARE = Unit(100, 1, " %", " points")
SCORE = Unit(1, 1, "", " points")
RATIO = Unit(1, 2)
CORRELATION = Unit(1, 4)
_PLAIN = {"perplexity": RATIO, "spearman": CORRELATION, "agreement": CORRELATION}


def unit_of(metric: str, task: str | None) -> Unit:
    """The unit of a quality metric; of F1 it depends on the task."""
    if metric in PERCENT.get(task or "", ()):
        return SCORE
    return _PLAIN.get(metric, SHARE)


def format_percent(share: float, sign: str = "") -> str:
    """A share as `87.1 %`; `sign` "+" shows the sign of a positive one too."""
    return SHARE.value(share, sign)


def format_times(ratio: float) -> str:
    """A speed-up."""
    return f"{ratio:.2f}{TIMES}"


def format_bytes(value: float) -> str:
    """Bytes in decimal units, three figures: `67.2 MB`."""
    return f"{_scaled(value, ('', 'k', 'M', 'G', 'T'))}B"


def format_count(value: float) -> str:
    """A count with three figures: `16.8 M`."""
    return _scaled(value, ("", "k", "M", "G", "T")).rstrip()


def format_duration(seconds: float) -> str:
    """Seconds as `4.2 s` or `3 min 20 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _scaled(value: float, prefixes: Sequence[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[step]}"
