"""The report of a job: `report.json` for programs, and one self-contained `report.html` for a review."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service.specs import LOWER_IS_BETTER
from workers.engine.charts import RUNTIME_TITLES, Point, curves_chart, latency_chart, structure_chart
from workers.engine.figures import (
    METRIC_TITLES,
    TIMES,
    Unit,
    format_bytes,
    format_count,
    format_duration,
    format_percent,
    format_times,
    unit_of,
)
from workers.engine.verdict import measured_speedup

TEMPLATE = "report.html.j2"
COSTS = {
    "parameters": "Parameters",
    "nonzero_parameters": "Non-zero parameters",
    "size": "Size of the weights",
    "flops": "FLOPs per sequence",
    "peak_memory": "Peak memory of inference",
}


PACKED = "Size with zeros compressed"


@dataclass(frozen=True)
class Record:
    """Everything a report tells of one job, all of it JSON values.

    `result` is the job's result: verdict, passed, before, after, model, engine. `curves` are the training curves by
    name, each a list of `{"step", "value"}`. `cuts` has one `{"round", "structure", "criterion", "removed", "of"}` per
    cut and round, `removed` and `of` counting units. `kept_layers` has by stack the indices, from 0, of
    the original's layers that are left. `warnings` are `{"code", "message"}`. `verification` says how the exports were
    checked.
    """

    configuration: Mapping[str, Any]
    result: Mapping[str, Any]
    curves: Mapping[str, Sequence[Point]]
    cuts: Sequence[Mapping[str, Any]]
    kept_layers: Mapping[str, Sequence[int]]
    warnings: Sequence[Mapping[str, str]] = ()
    verification: str = "Every export was loaded again in a fresh process and gave the pruned network's outputs."


def write_report(record: Record, out: Path) -> None:
    """Writes `report/report.json` and `report/report.html` below `out`; lists the artifacts that lie there already."""
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(asdict(record), indent=2, allow_nan=False) + "\n")
    (folder / "report.html").write_text(render(record, list_artifacts(out)), encoding="utf-8")


def list_artifacts(out: Path) -> list[dict[str, Any]]:
    """`{"path", "size", "files"}` of what lies below `out`, the report left out: ONNX by file, the rest by folder."""
    sizes: dict[str, list[int]] = {}
    for file in sorted(file for file in out.rglob("*") if file.is_file()):
        path = file.relative_to(out)
        if path.parts[0] != "report":
            name = path.as_posix() if path.parts[0] == "onnx" else f"{path.parts[0]}/"
            sizes.setdefault(name, []).append(file.stat().st_size)
    return [{"path": name, "size": sum(found), "files": len(found)} for name, found in sizes.items()]


def render(record: Record, artifacts: Sequence[Mapping[str, Any]] = ()) -> str:
    """The HTML page: no script, nothing loaded from elsewhere; every value is escaped."""
    before, after, task = record.result["before"], record.result["after"], record.result["model"]["task"]
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            record=record,
            result=record.result,
            configuration=json.dumps(record.configuration, indent=2, ensure_ascii=False),
            headline=list(_headline(before, after, task)),
            goals=[_goal(goal, task) for goal in record.result["verdict"]],
            quality=list(_quality_rows(before, after, task)),
            costs=list(_cost_rows(before, after)),
            latencies=list(_latency_rows(before, after)),
            int8_speedup=_int8_speedup(before, after),
            charts=_charts(record),
            artifacts=artifacts,
        )
    )


def environment() -> Environment:
    """Finds the templates below this folder, and escapes every value that goes into them."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"bytes": format_bytes, "duration": format_duration}
    return found


def _charts(record: Record) -> dict[str, Markup]:
    """SVG made by us from numbers alone, hence safe to embed as it is; left out where there is nothing to draw."""
    before, after = record.result["before"], record.result["after"]
    charts = {}
    if before["structure"]["attention_heads"]:
        charts["structure"] = structure_chart(before["structure"], after["structure"], record.kept_layers)
    if before["latency"]:
        charts["latency"] = latency_chart(before["latency"], after["latency"])
    curves = {name: points for name, points in record.curves.items() if points}
    if curves:
        charts["curves"] = curves_chart(curves)
    return {name: Markup(svg) for name, svg in charts.items()}  # noqa: S704


def _int8_speedup(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """What pruning and int8 bring together at the first batch size: original in fp32 over pruned in int8."""
    dense = next((row for row in before["latency"] if row["runtime"] == "onnxruntime"), None)
    if dense is None:
        return None
    int8 = (row for row in after["latency"] if row["runtime"] == "onnxruntime_int8")
    return next((dense["p50"] / row["p50"] for row in int8 if row["batch_size"] == dense["batch_size"]), None)


def _headline(before: Mapping[str, Any], after: Mapping[str, Any], task: str | None) -> Iterator[dict[str, str]]:
    """At most four figures that say what the job bought and what it cost."""
    for runtime in ("onnxruntime", "torch"):
        speedup = measured_speedup(dict(before), dict(after), runtime)
        if speedup:
            batch = next(row["batch_size"] for row in before["latency"] if row["runtime"] == runtime)
            yield {"value": format_times(speedup), "label": f"as fast in {RUNTIME_TITLES[runtime]}, batch {batch}"}
            break
    for metric in list(after["metrics"])[:1]:
        old, new = (float(side["metrics"][metric]["value"]) for side in (before, after))
        show = unit_of(metric, task).value
        yield {"value": show(new), "label": f"{METRIC_TITLES[metric]}, from {show(old)}"}
    for key, label in (("parameters", "of the parameters"), ("flops", "of the FLOPs"), ("size", "of the bytes")):
        if before.get(key) and after.get(key) is not None:
            yield {"value": f"{after[key] / before[key] * 100:.0f} %", "label": label}


def _goal(goal: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """One line of the verdict in words."""
    bounds, metric = goal["goal"], str(goal["metric"])
    name = METRIC_TITLES.get(metric, metric.capitalize())
    show: Callable[[float], str]
    if metric == "latency":
        batch = f", batch {bounds['batch_size']}" if bounds.get("batch_size") else ""
        name = f"Latency, {RUNTIME_TITLES[bounds['runtime']]}{batch}"
        asked, show = f"at least {bounds['min_speedup']:g}{TIMES} as fast", format_times
    elif "max_ratio" in bounds:
        asked, show = f"at most {bounds['max_ratio'] * 100:g} % of the original", format_percent
    else:
        asked, show = _quality_goal(bounds, unit_of(metric, task))
    measured = "not measured" if goal["measured"] is None else show(goal["measured"])
    return {"name": name, "asked": asked, "measured": measured, "passed": goal["passed"]}


def _quality_goal(bounds: Mapping[str, Any], unit: Unit) -> tuple[str, Callable[[float], str]]:
    """What a goal on quality asks for, and how what was measured is shown."""
    if bounds.get("max_drop") is not None:
        worse = "rise" if bounds["metric"] in LOWER_IS_BETTER else "drop"
        return f"{worse} of at most {unit.difference_bound(bounds['max_drop'])}", unit.difference
    if bounds.get("min_value") is not None:
        return f"at least {unit.bound(bounds['min_value'])}", unit.value
    return f"at most {unit.bound(bounds['max_value'])}", unit.value


def _quality_rows(before: Mapping[str, Any], after: Mapping[str, Any], task: str | None) -> Iterator[dict[str, Any]]:
    for metric, new in after["metrics"].items():
        old, unit = before["metrics"][metric], unit_of(metric, task)
        rise = new["value"] - old["value"]
        yield {
            "name": METRIC_TITLES[metric],
            "before": unit.value(old["value"]),
            "before_interval": unit.interval(old["low"], old["high"]),
            "after": unit.value(new["value"]),
            "after_interval": unit.interval(new["low"], new["high"]),
            "change": unit.difference(rise, sign="+"),
            "better": rise < 0 if metric in LOWER_IS_BETTER else rise > 0,
        }


def _cost_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, name in COSTS.items():
        old, new = before.get(key), after.get(key)
        if old and new is not None:
            show = format_bytes if key in ("size", "peak_memory") else format_count
            change = format_percent(new / old - 1, sign="+")
            yield {"name": name, "before": show(old), "after": show(new), "change": change, "better": new < old}
    if packed := after.get("compressed_size"):
        size, change = format_bytes(before["size"]), format_percent(packed / before["size"] - 1, sign="+")
        better = packed < before["size"]
        yield {"name": PACKED, "before": size, "after": format_bytes(packed), "change": change, "better": better}


def _latency_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for old, new in zip(before["latency"], after["latency"], strict=True):
        yield {
            "runtime": RUNTIME_TITLES.get(old["runtime"], old["runtime"]),
            "batch_size": old["batch_size"],
            "before": old["p50"] * 1000,
            "before_p95": old["p95"] * 1000,
            "after": new["p50"] * 1000,
            "after_p95": new["p95"] * 1000,
            "speedup": old["p50"] / new["p50"],
        }
