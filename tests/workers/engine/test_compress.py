"""Whole jobs on tiny networks: from a folder to a folder."""

import hashlib
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
from workers.engine.failures import EngineError
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


def test_attentions_and_ffns_go_apart_and_what_is_left_is_pruned_again(tmp_path: Path) -> None:
    cuts = [
        {"structure": "attention_layers", "ratio": 0.5, "criterion": {"kind": "similarity", "samples": 32}},
        {"structure": "ffn_layers", "ratio": 0.5, "criterion": TAYLOR},
    ]
    job = {"exports": ["huggingface_custom"], "benchmark": None}
    first, _ = run(tmp_path / "one", spec_of(pruning={"cuts": cuts}, finetuning={"epochs": 1}, **job))
    assert sorted(first["after"]["structure"]["attention_heads"]) == [0, 4]
    assert sorted(first["after"]["structure"]["ffn_width"]) == [0, 48]
    assert all(first["after"][cost] < first["before"][cost] for cost in ("parameters", "flops", "size"))
    assert not first["model"]["facts"]["uniform"]
    tiny_dataset(tmp_path / "two" / "in" / "dataset")
    (tmp_path / "one" / "out" / "huggingface_custom").rename(tmp_path / "two" / "in" / "model")
    spec = spec_of(pruning={"target": {"metric": "flops", "ratio": 0.5, "samples": 32}}, **job)
    second = compress(tmp_path / "two", spec, Reporter(io.StringIO()), max_threads=1)
    before, after = second["before"], second["after"]
    assert before["structure"] == first["after"]["structure"]
    assert after["flops"] < before["flops"]
    assert [bool(heads) for heads in after["structure"]["attention_heads"]] == [
        bool(heads) for heads in before["structure"]["attention_heads"]
    ]


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


def digest(folder: Path) -> str:
    """Of the exported weights."""
    return hashlib.sha256((folder / "out" / "huggingface_custom" / "model.safetensors").read_bytes()).hexdigest()


def test_two_runs_of_one_seed_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    parts = {
        "pruning": {
            "cuts": [
                {"structure": "attention_heads", "ratio": 0.5, "criterion": TAYLOR},
                {"structure": "ffn_neurons", "ratio": 0.5, "repair": True, "criterion": {"kind": "movement"}},
            ]
        },
        "finetuning": {"epochs": 1, "learning_rate": 1e-3, "distillation": {}},
        "exports": ["huggingface_custom"],
        "benchmark": None,
    }
    digests = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        run(tmp_path / name, spec_of(**parts, seed=seed))
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def labels_in(row: dict[str, Any]) -> list[str]:
    """One or two."""
    return [("bad", "good")[row["label"]]] + ["film"] * ("film" in row["text"].split())


def test_rows_of_several_labels(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "in" / "dataset")
    for file in dataset.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        several = [{"text": row["text"], "labels": labels_in(row)} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in several))
    spec = spec_of(
        baseline={"epochs": 25, "learning_rate": 3e-3, "batch_size": 16},
        pruning={"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": TAYLOR}]},
        finetuning={"epochs": 1, "learning_rate": 1e-3, "distillation": {}},
        benchmark=None,
    )
    result, _ = run(tmp_path, spec, head=False, data=False)
    assert result["model"]["facts"]["labels"] == ["bad", "film", "good"]
    assert result["after"]["metrics"]["accuracy"]["value"] > 0.9, "the commonest set is right in 0.3"
    config = json.loads((tmp_path / "out" / "huggingface" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_the_vocabulary_goes_without_a_trace_in_the_figures(tmp_path: Path) -> None:
    spec = spec_of(pruning={"cuts": [{"structure": "vocabulary"}]}, exports=["huggingface", "onnx"])
    result, _ = run(tmp_path, spec)
    assert result["before"]["metrics"] == result["after"]["metrics"] != {}
    assert result["after"]["parameters"] < result["before"]["parameters"]
    out = tmp_path / "out" / "huggingface"
    saved = load_file(out / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(saved) < 120
    assert {row["runtime"] for row in result["after"]["latency"]} == {"torch", "onnxruntime"}


def test_half_of_the_flops_are_left(tmp_path: Path) -> None:
    spec = spec_of(
        pruning={"target": {"metric": "flops", "ratio": 0.5, "samples": 64}},
        exports=["huggingface_custom"],
        benchmark=None,
    )
    result, lines = run(tmp_path, spec)
    before, after = (result[side]["structure"] for side in ("before", "after"))
    assert sum(after["ffn_width"]) < sum(before["ffn_width"])
    assert sum(after["attention_heads"]) <= sum(before["attention_heads"])
    assert after["layers"] == before["layers"]
    assert 0.4 < result["after"]["flops"] / result["before"]["flops"] < 0.65
    assert {line["data"]["structure"] for line in lines if line["type"] == "event" and "structure" in line["data"]} == {
        "attention_heads",
        "ffn_neurons",
    }


def test_two_of_four_weights_by_second_order(tmp_path: Path) -> None:
    cut = {"structure": "weights", "pattern": "2:4", "criterion": {"kind": "second_order", "samples": 64}}
    run(tmp_path, spec_of(pruning={"cuts": [cut]}, benchmark=None))
    tensors = load_file(tmp_path / "out" / "huggingface" / "model.safetensors")
    weights = [value for name, value in tensors.items() if ".layer." in name and value.dim() == 2]
    assert len(weights) == 12
    assert all(bool(((weight.view(-1, 4) != 0).sum(1) == 2).all()) for weight in weights)


class Counting(Reporter):
    """Also adds up what it is told, beyond the total too."""

    told = 0

    def advance(self, steps: int = 1) -> None:
        self.told += steps
        super().advance(steps)


SECOND_ORDER = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "second_order", "samples": 32}}
MOVEMENT = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "movement", "epochs": 2}}


@pytest.mark.parametrize(
    "pruning",
    [
        {"target": {"metric": "flops", "ratio": 0.8, "samples": 32}, "schedule": {"kind": "gradual", "rounds": 2}},
        {"cuts": [SECOND_ORDER]},
        {"cuts": [MOVEMENT], "schedule": {"kind": "gradual", "rounds": 2}},
    ],
    ids=["target", "second_order", "movement"],
)
def test_all_of_the_work_was_foreseen(pruning: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(tmp_path / "in" / "model")
    tiny_dataset(tmp_path / "in" / "dataset", train=32, validation=8, test=16)
    parts = {"baseline": {"epochs": 1}, "finetuning": {"epochs": 2, "distillation": {}}, "benchmark": None}
    reporter = Counting(io.StringIO())
    compress(tmp_path, spec_of(pruning=pruning, **parts), reporter, max_threads=1)
    assert reporter.told == reporter.total_steps
    codes = [warning["code"] for warning in reporter.warnings]
    assert codes == sorted(set(codes))


def test_a_target_out_of_reach_ends_the_job_before_its_first_round(tmp_path: Path) -> None:
    target = {"target": {"metric": "flops", "ratio": 0.02, "samples": 32}}
    lines = io.StringIO()
    tiny_model(tmp_path / "in" / "model")
    tiny_dataset(tmp_path / "in" / "dataset", train=32)
    spec = spec_of(pruning=target | {"schedule": {"kind": "gradual", "rounds": 4}}, finetuning={"epochs": 4})
    with pytest.raises(EngineError) as caught:
        compress(tmp_path, spec, Reporter(lines), max_threads=1)
    assert (caught.value.code, caught.value.blame) == ("TARGET_OUT_OF_REACH", "user")
    assert "huggingface_custom" in caught.value.message
    assert "pruning.cut" not in lines.getvalue()


def test_rounds_add_up() -> None:
    cuts = [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}]
    spec = spec_of(pruning={"cuts": cuts, "schedule": {"kind": "gradual", "rounds": 4}}, finetuning={"epochs": 6})
    shares = round_shares(spec)
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert round_epochs(spec, 4) == [1, 1, 2, 2]
