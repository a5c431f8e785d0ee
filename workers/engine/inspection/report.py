"""The report of an inspection: `report.json` with the scores of all units, and one self-contained `report.html`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from workers.engine.figures import DASH, format_count, format_percent
from workers.engine.inspection.charts import alike_chart, heads_chart, layers_chart, trials_chart
from workers.engine.inspection.telling import title, words
from workers.engine.reporting import environment

TEMPLATE = "inspection/report.html.j2"
BEST_FIRST = ("second_order", "fisher", "taylor", "gradient", "activation", "magnitude", "random")
"""Criteria by how well they tell neurons apart: where several were asked for, the bars are of the first."""


@dataclass(frozen=True)
class Record:
    """Everything a report tells of one inspection, all of it JSON values.

    `model` is what the service knows of the upload, `result` the job's result, `matrices` has the weights near zero of
    every matrix, `units` the scores of all units but single weights; `warnings` are `{"code", "message"}`.
    """

    configuration: Mapping[str, Any]
    model: Mapping[str, Any]
    result: Mapping[str, Any]
    matrices: Sequence[Mapping[str, Any]]
    units: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, str]] = ()


def write_report(record: Record, out: Path) -> None:
    """Writes `report/report.json` and `report/report.html` below `out`."""
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(asdict(record), allow_nan=False) + "\n")
    (folder / "report.html").write_text(render(record), encoding="utf-8")


def render(record: Record) -> str:
    """The HTML page: no script, nothing loaded from elsewhere; every value is escaped."""
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            record=record,
            result=record.result,
            configuration=json.dumps(record.configuration, indent=2, ensure_ascii=False),
            headline=list(_headline(record)),
            trials=list(_trial_rows(record.result)),
            matrices=record.result["near_zero"]["matrices"][:10],
            percent=format_percent,
            charts={name: Markup(chart) for name, chart in _charts(record.result)},  # noqa: S704 # ours, of numbers alone
        )
    )


def _charts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scored, neurons = result["scored"], _neurons(result["scored"])
    if heads := [one for one in scored if one["structure"] == "attention_heads"]:
        yield "heads", heads_chart(heads)
    if result["near_zero"]["layers"]:
        yield "layers", layers_chart(result["near_zero"], neurons)
    if stacks := [stack for stack in result["alike"] if stack["states"] or stack["weights"]]:
        yield "alike", alike_chart(stacks)
    if scored:
        yield "trials", trials_chart(scored, result["loss"])


def _neurons(scored: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    found = {one["criterion"]["kind"]: one for one in scored if one["structure"] == "ffn_neurons"}
    return next((found[kind] for kind in BEST_FIRST if kind in found), None)


def _headline(record: Record) -> Iterator[dict[str, str]]:
    result, near = record.result, record.result["near_zero"]
    yield {"value": format_count(record.model["parameters"]), "label": "parameters"}
    yield {
        "value": format_percent(near["share"]),
        "label": f"of the weights near zero, {format_percent(near['zeros'])} zero",
    }
    if result["loss"] is not None:
        yield {"value": f"{result['loss']:.4g}", "label": f"loss on {result['rows']} rows of {result['split']}"}
    best = min(_affordable(result), key=lambda pair: -pair[1], default=None)
    if best is not None:
        yield {"value": format_percent(best[1]), "label": f"of the {best[0]} can go for at most 1 % more loss"}


def _affordable(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for one in result["scored"]:
        for trial in one["trials"]:
            if trial["removed"] and trial["loss"] is not None and trial["loss"] <= 1.01 * result["loss"]:
                yield words(one["structure"]), trial["removed"] / trial["of"]


def _trial_rows(result: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    whole = result["loss"]
    for one in result["scored"]:
        for number, trial in enumerate(one["trials"]):
            loss, same = trial["loss"], trial["agreement"]
            yield {
                "structure": title(one["structure"]) if number == 0 else "",
                "criterion": words(one["criterion"]["kind"]) if number == 0 else "",
                "ratio": f"{trial['ratio'] * 100:g} %",
                "removed": f"{trial['removed']:,} of {trial['of']:,}",
                "score": format_percent(trial["score"]),
                "loss": DASH if loss is None else f"{loss:.4g}",
                "change": DASH if loss is None or not whole else format_percent(loss / whole - 1, sign="+"),
                "agreement": DASH if same is None else format_percent(same),
            }
