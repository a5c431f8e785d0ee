"""Whole jobs on tiny networks: from a folder to a folder."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from service.ids import new_id
from service.specs import JobSpec
from tests.models import tiny_dataset, tiny_model
from workers.engine.compress import compress, round_epochs, round_shares
from workers.engine.reporter import Reporter

TAYLOR = {"kind": "taylor", "samples": 32}


def spec_of(**parts: Any) -> JobSpec:
    order = {
        "name": "tiny",
        "model_id": new_id("mdl"),
        "dataset_id": new_id("ds"),
        "task": "text-classification",
        "benchmark": {"batch_sizes": [1], "sequence_length": 8},
        "max_length": 16,
        "device": "cpu",
    }
    return JobSpec.model_validate(order | parts)


def run(folder: Path, spec: JobSpec, *, head: bool = True, data: bool = True) -> tuple[dict[str, Any], list[Any]]:
    tiny_model(folder / "in" / "model", head=head)
    if data:
        tiny_dataset(folder / "in" / "dataset")
    lines = io.StringIO()
    result = compress(folder, spec, Reporter(lines), max_threads=1)
    return result, [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def short_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.benchmark.MAX_REPETITIONS", 10)


def test_an_encoder_becomes_a_pruned_classifier_in_every_form(tmp_path: Path) -> None:
    spec = spec_of(
        baseline={"epochs": 6, "learning_rate": 3e-3},
        pruning={
            "cuts": [
                {"structure": "ffn_neurons", "ratio": 0.5, "criterion": TAYLOR},
                {"structure": "layers", "ratio": 0.5, "criterion": {"kind": "similarity", "samples": 32}},
            ]
        },
        finetuning={"epochs": 2, "learning_rate": 1e-3, "distillation": {}},
        acceptance=[{"metric": "parameters", "max_ratio": 0.95}, {"metric": "accuracy", "min_value": 0.5}],
        exports=["huggingface", "huggingface_custom", "onnx", "onnx_int8"],
    )
    result, lines = run(tmp_path, spec, head=False)
    assert result["after"]["structure"]["ffn_width"] == [24]
    assert result["before"]["structure"]["ffn_width"] == [48, 48]
    assert result["passed"], result["verdict"]
    assert {row["runtime"] for row in result["after"]["latency"]} == {"torch", "onnxruntime", "onnxruntime_int8"}
    assert next(line["phase"] for line in lines if line["type"] == "phase") == "loading"
    assert any(line["type"] == "metric" and line["name"] == "baseline/loss" for line in lines)
    assert (tmp_path / "out" / "report" / "report.html").stat().st_size > 10_000
    low, value, high = (result["after"]["metrics"]["accuracy"][key] for key in ("low", "value", "high"))
    assert low <= value <= high


def test_heads_and_gradual_sgd_through_the_custom_form(tmp_path: Path) -> None:
    spec = spec_of(
        pruning={
            "cuts": [
                {"structure": "attention_heads", "ratio": 0.5, "scope": "global", "criterion": TAYLOR},
                {"structure": "ffn_neurons", "ratio": 0.25, "scope": "global", "criterion": {"kind": "gradient"}},
            ],
            "schedule": {"kind": "gradual", "rounds": 2},
        },
        finetuning={
            "epochs": 2,
            "learning_rate": 1e-2,
            "optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
            "decay": "cosine",
        },
        exports=["onnx"],
        benchmark=None,
    )
    result, _ = run(tmp_path, spec)
    assert sum(result["after"]["structure"]["attention_heads"]) == 4
    assert sum(result["after"]["structure"]["ffn_width"]) == 72
    assert result["model"]["directory"] == "network"
    assert (tmp_path / "out" / "network" / "config.json").exists()


@pytest.mark.parametrize(
    ("cut", "share"),
    [
        ({"ratio": 0.8, "pattern": "unstructured", "scope": "global", "criterion": {"kind": "magnitude"}}, 0.8),
        ({"pattern": "2:4", "criterion": {"kind": "taylor", "samples": 32}}, 0.5),
    ],
)
def test_weights_stay_zero_while_fine_tuning(tmp_path: Path, cut: dict[str, Any], share: float) -> None:
    spec = spec_of(
        pruning={"cuts": [{"structure": "weights", **cut}]},
        finetuning={"epochs": 1, "learning_rate": 1e-3},
        benchmark=None,
    )
    run(tmp_path, spec)
    tensors = load_file(tmp_path / "out" / "huggingface" / "model.safetensors")
    weights = [value for name, value in tensors.items() if ".layer." in name and value.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == pytest.approx(share * sum(weight.numel() for weight in weights), abs=1)
    if share == 0.5:
        assert all(int((weight.view(-1, 4) != 0).sum(1).max()) == 2 for weight in weights)


def test_a_job_without_data_and_its_twin_under_one_seed(tmp_path: Path) -> None:
    parts = {
        "dataset_id": None,
        "pruning": {"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}]},
        "benchmark": None,
    }
    saved = []
    for name in ("one", "two"):
        result, _ = run(tmp_path / name, spec_of(**parts), data=False)
        assert result["after"]["metrics"] == {}
        saved.append(load_file(tmp_path / name / "out" / "huggingface" / "model.safetensors"))
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


def test_rounds_add_up() -> None:
    cuts = [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}]
    spec = spec_of(pruning={"cuts": cuts, "schedule": {"kind": "gradual", "rounds": 4}}, finetuning={"epochs": 6})
    shares = round_shares(spec)
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert round_epochs(spec, 4) == [1, 1, 2, 2]
