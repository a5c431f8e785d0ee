"""Rounding: how many units a share is, for the door that checks a cut and for the engine that makes it."""

import math


def nearest(number: float) -> int:
    """The nearest integer, halves upwards; what 0.1 + 0.2 and the like leave below a half counts as a half."""
    return math.floor(number + 0.5 + 1e-9)
