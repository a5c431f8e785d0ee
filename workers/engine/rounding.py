"""Rounding: how many units a share is, and how many figures of a number are told."""

import math


def nearest(number: float) -> int:
    """The nearest integer, halves upwards; what 0.1 + 0.2 and the like leave below a half counts as a half."""
    return math.floor(number + 0.5 + 1e-9)


def brief(value: float, figures: int = 5) -> float:
    """A number in so many significant figures: more say nothing and make long JSON."""
    return float(f"{value:.{figures}g}")
