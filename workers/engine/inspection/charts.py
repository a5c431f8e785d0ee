"""The charts of an inspection: heat maps in shades of one colour, bars per layer, and the loss over what is cut."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workers.engine.charts import AFTER, BEFORE, INK, MUTED, svg
from workers.engine.inspection.telling import title, words

Finding: TypeAlias = Mapping[str, Any]
Table: TypeAlias = Sequence[Sequence[float]]
"""Shades from 0 to 1; rows may differ in length."""

PALEST = 0.06
LINES = ((AFTER, "-", "o"), (INK, "-", "s"), (BEFORE, "-", "^"), (AFTER, "--", "D"), (INK, "--", "v"),
         (MUTED, ":", "o"), (BEFORE, "--", "s"), (MUTED, "-.", "^"))  # fmt: skip
"""Colour, stroke and mark of each criterion's line."""


def heads_chart(scored: Sequence[Finding]) -> str:
    """Importance of attention heads, layer by head: one panel per criterion, stack and attention."""
    panels = [(one, place) for one in scored for place in dict.fromkeys(_place(group) for group in one["groups"])]
    several = len(panels) > len(scored)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 0.9 + 0.2 * max(len(_of(one, place)) for one, place in panels)

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, (one, place) in zip(axes, panels, strict=False):
            groups = _of(one, place)
            shade(panel, shades(groups))
            parts = [title(one["criterion"]["kind"]), *(place if several else ())]
            panel.set_title(", ".join(part for part in parts if part))
            panel.set_xlabel("head")
            _layer_ticks(panel, [group["layer"] for group in groups])
        for panel in axes[len(panels) :]:
            panel.set_axis_off()

    return svg("heads", (9.45, min(7.0, height) * rows), draw)


def _place(group: Finding) -> tuple[str, str]:
    return group["stack"], group["place"]


def _of(one: Finding, place: tuple[str, str]) -> list[Finding]:
    return [group for group in one["groups"] if _place(group) == place]


def shades(groups: Sequence[Finding]) -> Table:
    """Scores as shades, from 0 for the lowest to 1; by square roots, so that small ones differ to the eye."""
    return _stretched([[math.sqrt(max(0.0, score)) for score in group["scores"]] for group in groups])


def shade(axes: Axes, table: Table) -> None:
    """Draws cells, the first row on top."""
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            alpha = PALEST + (1 - PALEST) * value
            cell = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, facecolor=AFTER, alpha=alpha, linewidth=0)
            axes.add_patch(cell)
    axes.set_xlim(-0.6, max(len(values) for values in table) - 0.4)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    _ticks(axes, "x", max(len(values) for values in table), 1)


def _ticks(axes: Axes, side: str, count: int, first: int) -> None:
    step = math.ceil(count / 12)
    places = list(range(0, count, step))
    labels = [str(place + first) for place in places]
    axes.set_xticks(places, labels) if side == "x" else axes.set_yticks(places, labels)


def _layer_ticks(axes: Axes, layers: Sequence[int | None]) -> None:
    step = math.ceil(len(layers) / 12)
    names = ["all" if layer is None else str(layer + 1) for layer in layers]
    axes.set_yticks(range(0, len(layers), step), names[::step])
    axes.set_ylabel("layer")


def layers_chart(near: Finding, neurons: Finding | None) -> str:
    """Bars per layer: weights near zero, exact zeros among them in grey, and idle neurons where they were scored."""
    panels = 1 if neurons is None else 2

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(1, panels, squeeze=False).flat)
        rows = near["layers"]
        _bars(axes[0], [row["share"] for row in rows], [row["zeros"] for row in rows])
        axes[0].set_title("Weights near zero, % of a layer's")
        if neurons is not None:
            _bars(axes[1], [group["idle"] for group in neurons["groups"]])
            axes[1].set_title(f"Neurons that hold 5 % of the score, % ({words(neurons['criterion']['kind'])})")

    return svg("layers", (9.45, 2.6), draw)


def _bars(axes: Axes, values: Sequence[float], inside: Sequence[float] = ()) -> None:
    axes.bar(range(len(values)), [100 * value for value in values], 0.78, color=AFTER)
    if any(inside):
        axes.bar(range(len(inside)), [100 * value for value in inside], 0.78, color=BEFORE)
    _ticks(axes, "x", len(values), 1)
    axes.set_xlabel("layer")
    axes.margins(x=0.02)


def alike_chart(stacks: Sequence[Finding]) -> str:
    """How much alike layers are: states before the first and after each, and weights."""
    panels = [
        (f"{name} of the {stack['stack']}", stack[key], first)
        for stack in stacks
        for key, name, first in (("states", "States", 0), ("weights", "Weights", 1))
        if stack[key] is not None
    ]
    columns = 2
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, (name, table, first) in zip(axes, panels, strict=False):
            shade(panel, _stretched(table))
            panel.set_aspect("equal")
            panel.set_title(name)
            _ticks(panel, "x", len(table), first)
            _ticks(panel, "y", len(table), first)
            panel.set_xlabel("after layer" if first == 0 else "layer")
        for panel in axes[len(panels) :]:
            panel.set_axis_off()

    return svg("alike", (9.45, 3.6 * rows), draw)


def _stretched(table: Sequence[Sequence[float]]) -> Table:
    """Values as shades: the highest in the table is 1, the lowest 0; all full where they are the same."""
    least, most = min(min(row) for row in table), max(max(row) for row in table)
    return [[(value - least) / (most - least) if most > least else 1.0 for value in row] for row in table]


def trials_chart(scored: Sequence[Finding], whole: float | None) -> str:
    """Loss over the share that is cut, a panel per structure and a line per criterion; without rows the score's share.

    The dashed line is the loss of the `whole` network.
    """
    names = list(dict.fromkeys(one["structure"] for one in scored))
    kinds = list(dict.fromkeys(one["criterion"]["kind"] for one in scored))
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, name in zip(axes, names, strict=False):
            for one in scored:
                if one["structure"] == name:
                    _line(panel, one, kinds.index(one["criterion"]["kind"]), whole)
            if whole is not None:
                panel.axhline(whole, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            panel.set_title(title(name))
            panel.set_xlabel("% cut")
            panel.set_ylabel("score that goes, %" if whole is None else "loss")
            panel.legend(frameon=False, fontsize=8, labelcolor=MUTED)
        for panel in axes[len(names) :]:
            panel.set_axis_off()

    return svg("trials", (9.45, 2.8 * rows), draw)


def _line(axes: Axes, one: Finding, place: int, whole: float | None) -> None:
    color, stroke, mark = LINES[place % len(LINES)]
    told = [
        (100 * trial["ratio"], 100 * trial["score"] if whole is None else trial["loss"])
        for trial in one["trials"]
        if whole is None or trial["loss"] is not None
    ]
    points = [(0.0, 0.0 if whole is None else whole), *told]
    axes.plot(*zip(*points, strict=True), color=color, linestyle=stroke, marker=mark, markersize=4, linewidth=1.6,
              label=words(one["criterion"]["kind"]))  # fmt: skip
