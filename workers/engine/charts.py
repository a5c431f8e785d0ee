"""The report's charts as inline SVG: no fonts, no scripts, colours that follow the page's light or dark scheme."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.engine.figures import TIMES

Point: TypeAlias = Mapping[str, float | None]
"""`{"step", "value"}`; the value is None where it was not finite."""

INK, MUTED, GRID, BEFORE, AFTER, AFTER_PALE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    AFTER_PALE: "var(--after-pale)",
}
"""Colours that matplotlib writes, and the page's variables that take their place."""

_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.hspace": 0.1,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

RUNTIME_TITLES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_int8": "ONNX Runtime, int8",
}
CURVE_COLUMNS = 3
FEW_POINTS = 16
"""A curve of at most this many points marks each of them; a longer loss gets a running mean."""


def latency_chart(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Bars of p50 with a line to p95, in milliseconds, per runtime and batch size, and the speed-up above each pair."""
    runtimes = list(dict.fromkeys(row["runtime"] for row in before))

    def draw(figure: Figure) -> None:
        for axes, runtime in zip(figure.subplots(1, len(runtimes), squeeze=False)[0], runtimes, strict=True):
            pairs = [pair for pair in zip(before, after, strict=True) if pair[0]["runtime"] == runtime]
            _draw_latencies(axes, pairs)
            axes.set_title(RUNTIME_TITLES.get(runtime, runtime))
        figure.axes[0].set_ylabel("milliseconds per batch")

    return svg("latency", (3.15 * max(len(runtimes), 2), 2.7), draw)


def _draw_latencies(axes: Axes, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    for position, pair in enumerate(pairs):
        for offset, color, row in zip((-0.19, 0.19), (BEFORE, AFTER), pair, strict=True):
            p50, p95 = row["p50"] * 1000, row["p95"] * 1000
            axes.bar(position + offset, p50, 0.34, color=color)
            axes.plot([position + offset] * 2, [p50, p95], color=INK, linewidth=1.2)
        top = max(row["p95"] for row in pair) * 1000
        text = f"{pair[0]['p50'] / pair[1]['p50']:.2f}{TIMES}"
        axes.annotate(text, (position, top), (0, 5), textcoords="offset points", ha="center", weight="bold")
    axes.set_xticks(range(len(pairs)), [f"batch {pair[0]['batch_size']}" for pair in pairs])
    axes.set_xlim(-0.6, len(pairs) - 0.4)
    axes.margins(y=0.16)


PANELS = {"attention_heads": "Attention heads per layer", "ffn_width": "FFN neurons per layer"}


def structure_chart(before: Mapping[str, Any], after: Mapping[str, Any], kept: Mapping[str, Sequence[int]]) -> str:
    """Attention heads and FFN neurons that each layer of the original kept; `kept` has the layers that are left of each
    stack, as indices from 0."""
    sides = [side for side in ("", "decoder_") if before.get(f"{side}attention_heads")]
    panels = [(side, key, title) for side in sides for key, title in PANELS.items()]

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(sides), 2, squeeze=False).flatten()
        for axes, (side, key, title) in zip(rows, panels, strict=True):
            stack = next(iter(kept)) if len(sides) == 1 and kept else side.rstrip("_") or "encoder"
            widths = after[f"{side}{key}"]
            _draw_layers(
                axes, before[f"{side}{key}"], dict(zip(kept.get(stack, range(len(widths))), widths, strict=True))
            )
            axes.set_title(f"{title} of the decoder" if side else title)
            axes.set_xlabel("layer of the original")

    return svg("structure", (9.45, 2.7 * len(sides)), draw)


def _draw_layers(axes: Axes, sizes: Sequence[int], kept: Mapping[int, int]) -> None:
    labelled = len(sizes) <= 16
    for layer, size in enumerate(sizes):
        if layer in kept:
            axes.bar(layer, size, 0.78, color=AFTER_PALE)
            axes.bar(layer, kept[layer], 0.78, color=AFTER)
        else:
            axes.bar(layer, size, 0.74, facecolor="none", edgecolor=BEFORE, linestyle=(0, (3, 2)), linewidth=1)
        if labelled:
            text = str(kept[layer]) if layer in kept else "removed"
            small = len(sizes) > 8 and (layer not in kept or len(text) > 3)
            style = {"rotation": 90, "va": "bottom"} if small else {"va": "bottom"}
            axes.annotate(text, (layer, size), (0, 3), textcoords="offset points", ha="center", size=8, **style)
    step = math.ceil(len(sizes) / 12)
    axes.set_xticks(range(0, len(sizes), step), [str(layer + 1) for layer in range(0, len(sizes), step)])
    axes.margins(y=0.2 if labelled else 0.05)


def curves_chart(curves: Mapping[str, Sequence[Point]]) -> str:
    """One panel per training curve, over its steps; gaps where a value was not finite."""
    columns = min(CURVE_COLUMNS, max(len(curves), 2))
    rows = math.ceil(len(curves) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (name, points) in zip(panels, curves.items(), strict=False):
            _draw_curve(axes, points, noisy=name.endswith("loss"))
            axes.set_title(_curve_title(name))
            axes.set_xlabel("step")
        for axes in list(figure.axes)[len(curves) :]:
            axes.set_axis_off()

    return svg("curves", (9.45, 2.4 * rows), draw)


def _curve_title(name: str) -> str:
    phase, _, metric = name.replace("_", " ").rpartition("/")
    return f"{phase.capitalize()}: {metric}" if phase else metric.capitalize()


def _draw_curve(axes: Axes, points: Sequence[Point], noisy: bool) -> None:
    steps = [float(point["step"] or 0) for point in points]
    values = [math.nan if point["value"] is None else float(point["value"]) for point in points]
    if noisy and len(points) > FEW_POINTS:
        axes.plot(steps, values, color=AFTER_PALE, linewidth=0.9)
        values = running_mean(values, len(values) // 20)
    marker = "o" if len(points) <= FEW_POINTS else ""
    axes.plot(steps, values, color=AFTER, linewidth=1.8, marker=marker, markersize=4)
    axes.margins(x=0.03, y=0.12)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean over `reach` neighbours on both sides, without those that are not finite; nan where there are none."""
    means = []
    for index in range(len(values)):
        near = [v for v in values[max(0, index - reach) : index + reach + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def svg(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draws a figure of `size` inches; the same input gives the same bytes, and ids start with `name`."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    markup = buffer.getvalue()
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup[markup.index("<svg") :], flags=re.DOTALL)
    markup = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", markup)
    for color, variable in _VARIABLES.items():
        markup = markup.replace(color, variable)
    return re.sub(r"font: ([^;\"]*?)([\d.]+px)[^;\"]*", r"font: \1\2 system-ui, sans-serif", markup)
