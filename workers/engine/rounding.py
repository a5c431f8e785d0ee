"""Rounding: how many figures of a number are told."""


def brief(value: float, figures: int = 5) -> float:
    """A number in so many significant figures: more say nothing and make long JSON."""
    return float(f"{value:.{figures}g}")
