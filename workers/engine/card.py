"""The model card: a README.md in every Hugging Face directory of a job, by which its model is understood on its own.

Written from the same figures as the report, without times, and without PyTorch, as some jobs never import it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from service.catalog import has_tokenizer
from workers.engine.charts import RUNTIME_TITLES
from workers.engine.figures import TIMES, format_bytes, format_count
from workers.engine.reporting import COSTS, PACKED, Record, environment

TEMPLATE = "card.md.j2"
FILE = "README.md"
DIRECTORIES = ("huggingface", "huggingface_custom", "network")

AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "translation": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sentence-embedding": "AutoModel",
}
PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "sentence-embedding": "feature-extraction",
}
"""Names of tasks on the hub, where they are not ours."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_BLANKS = re.compile(r"\n{3,}")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def write_cards(record: Record, out: Path) -> None:
    """Writes `README.md` into every Hugging Face directory below `out`; one that is there already is replaced."""
    for folder in (out / name for name in DIRECTORIES):
        if folder.is_dir():
            (folder / FILE).write_text(render(record, folder), encoding="utf-8")


def render(record: Record, folder: Path) -> str:
    """The card of the model in `folder`: what it is made of decides how it is to be loaded."""
    configuration, result = record.configuration, record.result
    names = [path.name for path in folder.iterdir()]
    cards = environment()
    cards.filters["plain"] = plain
    text = cards.get_template(TEMPLATE).render(
        record=record,
        result=result,
        front=Markup(_front(record)),  # noqa: S704 # JSON, which is YAML, of checked names
        cuts=[{**cut, "share": cut["removed"] / cut["of"] if cut["of"] else 0.0} for cut in record.cuts],
        sizes=list(_size_rows(result["before"]["structure"], result["after"]["structure"])),
        rows=[*_quality_rows(result), *_cost_rows(result), *_latency_rows(result)],
        goals=[_goal(goal) for goal in result["verdict"]],
        auto=AUTO_CLASSES[configuration["task"]],
        decodes=configuration["task"] == "translation",
        custom=any(name.startswith("modeling_") for name in names),
        tokenizer=has_tokenizer(names),
        onnx=[name for name in configuration["exports"] if name.startswith("onnx")],
        zeroes=result["after"].get("compressed_size") is not None,
    )
    return _BLANKS.sub("\n\n", text).strip() + "\n"


def _front(record: Record) -> str:
    """The YAML at the head of the card, each value written as JSON.

    `base_model` is what the job's metadata says under that name, where that can be the name of a model on the hub.
    """
    configuration = record.configuration
    task = configuration["task"]
    structures = dict.fromkeys(cut["structure"].replace("_", "-") for cut in record.cuts)
    tags = ["secateur", "pruned", *structures]
    fields = {"library_name": "transformers", "pipeline_tag": PIPELINES.get(task, task), "tags": tags}
    base = (configuration.get("metadata") or {}).get("base_model", "")
    if _HUB_NAME.fullmatch(base):
        fields = {"base_model": base} | fields
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())


def plain(text: object) -> Markup:
    """Text that was submitted, on one line, with what Markdown or HTML would obey taken out of force."""
    return Markup(_SPECIAL.sub(r"\\\1", str(escape(" ".join(str(text).split())))))  # noqa: S704 # escaped just now


def _size_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a structure had and has, layer by layer, where that is known and changed."""
    for name in after:
        old, new = before.get(name), after[name]
        if old and new is not None and old != new:
            yield name.replace("_", " "), _listed(old), _listed(new)


def _listed(sizes: int | Sequence[int]) -> str:
    if isinstance(sizes, int):
        return str(sizes)
    if len(set(sizes)) == 1:
        return f"{sizes[0]} in each of {len(sizes)} layers"
    return ", ".join(map(str, sizes))


def _quality_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Metrics in their own units, with their intervals."""
    for name, new in result["after"]["metrics"].items():
        old = result["before"]["metrics"][name]
        yield name.replace("_", " "), _interval(old), _interval(new), f"{new['value'] - old['value']:+.4f}"


def _interval(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


def _cost_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    before, after = result["before"], result["after"]
    for key, name in COSTS.items():
        old, new = before.get(key), after.get(key)
        if old and new is not None:
            show = format_bytes if key in ("size", "peak_memory") else format_count
            yield name, show(old), show(new), f"{new / old - 1:+.1%}"
    if packed := after.get("compressed_size"):
        yield PACKED, format_bytes(before["size"]), format_bytes(packed), f"{packed / before['size'] - 1:+.1%}"


def _latency_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Medians in milliseconds, with the speed-up."""
    for old, new in zip(result["before"]["latency"], result["after"]["latency"], strict=True):
        runtime = RUNTIME_TITLES.get(old["runtime"], old["runtime"])
        name = f"Latency, {runtime}, {old['batch_size']} {TIMES} {old['sequence_length']} tokens"
        before, after = (f"{side['p50'] * 1000:.2f} ms" for side in (old, new))
        yield name, before, after, f"{old['p50'] / new['p50']:.2f}{TIMES} as fast"


def _goal(goal: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the verdict: the goal's own fields, in its metric's units."""
    bounds = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in goal["goal"].items() if k != "metric" and v is not None)
    measured = "not measured" if goal["measured"] is None else f"measured {goal['measured']:.4g}"
    return {"name": goal["metric"].replace("_", " "), "bounds": bounds, "measured": measured, "passed": goal["passed"]}
