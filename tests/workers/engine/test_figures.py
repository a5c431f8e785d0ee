import pytest

from service.specs.goals import QUALITY_METRICS
from workers.engine.figures import METRIC_TITLES, format_bytes, format_count, format_duration


def test_every_metric_has_a_title() -> None:
    assert set(METRIC_TITLES) == {metric for metrics in QUALITY_METRICS.values() for metric in metrics}


@pytest.mark.parametrize(
    ("value", "size", "count"),
    [(0, "0 B", "0"), (999, "999 B", "999"), (999_700, "1.00 MB", "1.00 M"), (16_802_690, "16.8 MB", "16.8 M")],
)
def test_quantities_have_three_figures(value: int, size: str, count: str) -> None:
    assert (format_bytes(value), format_count(value)) == (size, count)


def test_durations() -> None:
    assert (format_duration(4.21), format_duration(200)) == ("4.2 s", "3 min 20 s")
