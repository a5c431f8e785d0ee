import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from workers.engine.charts import curves_chart, running_mean
from workers.engine.reporting import Record, render, write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


def measurement(scale: float, heads: list[int], width: list[int], latency: bool = True) -> dict[str, Any]:
    rows = [(runtime, batch) for runtime in ("torch", "onnxruntime", "onnxruntime_int8") for batch in (1, 8)]
    speed = {"torch": 0.03, "onnxruntime": 0.02, "onnxruntime_int8": 0.01}
    return {
        "metrics": {"accuracy": {"value": 0.8 + 0.08 * scale, "low": 0.79, "high": 0.9}},
        "parameters": int(22_700_000 * scale),
        "nonzero_parameters": int(22_700_000 * scale),
        "size": int(90_800_000 * scale),
        "flops": int(2_870_000_000 * scale),
        "peak_memory": int(120_000_000 * scale),
        "latency": [
            {"runtime": r, "batch_size": b, "sequence_length": 128, "p50": s, "p95": s * 1.1}
            for r, b in rows
            for s in [speed[r] * b * scale]
        ]
        if latency
        else [],
        "structure": {"layers": len(heads), "hidden_size": 384, "attention_heads": heads, "ffn_width": width},
    }


@pytest.fixture
def record() -> Record:
    goal = {"metric": "accuracy", "max_drop": 0.05, "min_value": None, "max_value": None}
    latency = {"metric": "latency", "min_speedup": 3.0, "runtime": "onnxruntime", "batch_size": None}
    result = {
        "verdict": [
            {"metric": "accuracy", "goal": goal, "measured": 0.04, "passed": True},
            {"metric": "latency", "goal": latency, "measured": 2.0, "passed": False},
        ],
        "passed": False,
        "before": measurement(1.0, [12] * 3, [1536] * 3),
        "after": measurement(0.5, [6, 4], [777, 888]),
        "model": {"architecture": "BertForSequenceClassification", "task": "text-classification"},
        "engine": {
            "device": "cpu",
            "peak_memory": 1_400_000_000,
            "seconds": {"loading": 3.0, "finetuning": 200.0},
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
    }
    benchmark = {"batch_sizes": [1, 8], "sequence_length": 128, "threads": 1}
    points: list[dict[str, float | None]] = [{"step": s, "value": None if s == 7 else 1 / s} for s in range(1, 40)]
    return Record(
        configuration={"name": "<script>alert(1)</script> & co", "seed": 7, "benchmark": benchmark},
        result=result,
        curves={"finetuning/loss": points, "finetuning/accuracy": points[:3], "baseline/loss": []},
        cuts=[{"round": 1, "structure": "ffn_neurons", "criterion": "taylor", "removed": 2943, "of": 4608}],
        kept_layers={"encoder": [0, 2]},
        warnings=[{"code": "INPUT_TRUNCATED", "message": "<b>3</b> rows were cut."}],
    )


class Page(HTMLParser):
    """Collects what a browser would: tags that stay open, ids, text and whatever could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_loads_nothing(record: Record) -> None:
    html = render(record)
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_submitted_text_is_escaped(record: Record) -> None:
    html = render(record)
    assert "<script" not in html
    assert "<b>3</b>" not in html
    assert "<script>alert(1)</script> & co" in Page(html).text


def test_page_tells_the_verdict_and_the_numbers(record: Record) -> None:
    text = Page(render(record)).text
    for expected in (
        "Rejected",
        "drop of at most 5 points",
        "4.00 points",
        "at least 3\u00d7 as fast",
        "2.00\u00d7",
        "88.0 %",
        "84.0 %",
        "\u22124.00 points",
        "22.7 M",
        "90.8 MB",
        "\u221250.0 %",
        "20.00 / 22.00 ms",
        "The pruned network in int8 is 4.00\u00d7 as fast as the original in fp32",
        "2,943 of 4,608",
        "removed",
        "INPUT_TRUNCATED",
        "3 min 20 s",
        "transformers 5.23.0",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("task", "metric", "values", "bounds", "measured", "expected"),
    [
        (
            "question-answering",
            "f1",
            (91.91, 89.01),
            {"max_drop": 3.0},
            2.9,
            ("F1", "91.9", "89.0", "89.2 \u2013 92.9", "\u22122.90 points", "drop of at most 3 points", "2.90 points"),
        ),
        (
            "token-classification",
            "f1",
            (0.9721, 0.9748),
            {"min_value": 0.97},
            0.9748,
            ("F1", "97.2 %", "97.5 %", "+0.27 points", "at least 97 %"),
        ),
        (
            "translation",
            "bleu",
            (43.02, 40.42),
            {"min_value": 40.0},
            40.42,
            ("BLEU", "43.0", "40.4", "\u22122.60 points", "at least 40"),
        ),
        (
            "causal-lm",
            "perplexity",
            (58.33, 69.86),
            {"max_drop": 10.5},
            11.53,
            ("Perplexity", "58.33", "69.86", "+11.53", "rise of at most 10.5", "11.53"),
        ),
        (
            "sentence-embedding",
            "spearman",
            (0.8123, 0.8098),
            {"max_drop": 0.01},
            0.0025,
            ("Spearman correlation", "0.8123", "0.8098", "\u22120.0025", "drop of at most 0.01"),
        ),
    ],
)
def test_each_metric_is_told_in_its_own_unit(
    record: Record,
    task: str,
    metric: str,
    values: tuple[float, float],
    bounds: dict[str, float],
    measured: float,
    expected: tuple[str, ...],
) -> None:
    unset = {"max_drop": None, "min_value": None, "max_value": None}
    goal = {"metric": metric, "goal": {"metric": metric} | unset | bounds, "measured": measured, "passed": True}
    sides = {
        name: {**record.result[name], "metrics": {metric: {"value": v, "low": v * 0.97, "high": v * 1.0108}}}
        for name, v in zip(("before", "after"), values, strict=True)
    }
    model = {**record.result["model"], "task": task}
    html = render(replace(record, result={**record.result, **sides, "model": model, "verdict": [goal]}))
    text = Page(html).text
    assert [figure for figure in expected if figure not in text] == []
    assert f"{expected[0]}, from {expected[1]}" in text
    rose = values[1] > values[0]
    change = re.search(rf'<th>{expected[0]}</th>.*?<td( class="better")?>[^<]*</td></tr>', html, flags=re.DOTALL)
    assert change and bool(change[1]) is (not rose if metric == "perplexity" else rose)


def test_accepted_and_goalless_jobs_say_so(record: Record) -> None:
    assert "Accepted" in Page(render(replace(record, result={**record.result, "passed": True}))).text
    page = Page(render(replace(record, result={**record.result, "verdict": [], "passed": True})))
    assert "No goals set" in page.text
    assert "Verdict" not in page.text


def test_a_data_free_job_without_benchmark_still_gets_its_report(record: Record) -> None:
    sides = {
        name: measurement(scale, [12] * 2, [48] * 2, latency=False) | {"metrics": {}, "peak_memory": None}
        for name, scale in (("before", 1.0), ("after", 0.5))
    }
    bare = Record(
        {"name": "x", "seed": 0, "benchmark": None},
        {**record.result, **sides, "verdict": []},
        {},
        [],
        {"encoder": [0, 1]},
    )
    page = Page(render(bare))
    assert page.tags.count("svg") == 1
    assert "Latency" not in page.text
    assert "layer removed" not in page.text


def test_a_stack_whose_sizes_are_null_is_not_drawn(record: Record) -> None:
    page = render(record, [])
    for side in ("before", "after"):
        record.result[side]["structure"] |= {"decoder_attention_heads": None, "decoder_ffn_width": None}
    assert render(record, []) == page


def test_same_record_gives_the_same_bytes(record: Record) -> None:
    assert render(record) == render(record)


def test_files_hold_everything_and_list_the_artifacts(record: Record, tmp_path: Path) -> None:
    for name, size in (("huggingface/config.json", 10), ("huggingface/model.safetensors", 990), ("onnx/a.onnx", 500)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    write_report(record, tmp_path)
    write_report(record, tmp_path)
    data = json.loads((tmp_path / "report/report.json").read_text())
    assert data["result"] == record.result
    assert data["curves"]["finetuning/loss"][6] == {"step": 7, "value": None}
    assert (data["configuration"], data["cuts"]) == (record.configuration, record.cuts)
    text = Page((tmp_path / "report/report.html").read_text()).text
    assert "huggingface/ 2 files 1.00 kB" in text
    assert "onnx/a.onnx 500 B" in text
    assert "report/" not in text


def test_curves_use_colours_that_follow_the_scheme(record: Record) -> None:
    svg = curves_chart(record.curves)
    assert "var(--after)" in svg
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", svg)


def test_running_mean_steps_over_what_is_not_finite() -> None:
    assert running_mean([1.0, float("nan"), 3.0], 1) == [1.0, 2.0, 3.0]
