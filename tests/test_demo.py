"""What `make demo` runs: its jobs, its data, its arithmetic, and the whole of it on a small network."""

import importlib.util
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.specs import JobSpec
from tests.models import tiny_dataset, tiny_model

DEMO = Path(__file__).parents[1] / "docs" / "demo"
IDS = {"model_id": "mdl_" + "0" * 26, "dataset_id": "ds_" + "0" * 26}


@pytest.fixture
def demo() -> ModuleType:
    """`docs/demo/run.py`, which is a script in no package."""
    spec = importlib.util.spec_from_file_location("demo_run", DEMO / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_jobs_are_what_it_promises() -> None:
    job = JobSpec.model_validate(json.loads((DEMO / "job.json").read_text()) | IDS)
    heads = JobSpec.model_validate(json.loads((DEMO / "job-heads.json").read_text()) | IDS)
    assert {cut.structure: cut.ratio for cut in job.pruning.cuts} == {"layers": 0.33, "ffn_neurons": 0.5}
    assert job.baseline is not None and job.finetuning is not None and job.finetuning.distillation is not None
    assert set(job.exports) == {"huggingface", "onnx", "onnx_int8"}
    assert {cut.structure for cut in heads.pruning.cuts} == {"attention_heads", "layers", "ffn_neurons"}
    assert set(heads.exports) == {"huggingface_custom", "onnx", "onnx_int8"}


def test_its_data_is_small_whole_and_licensed() -> None:
    rows = {
        split: [json.loads(line) for line in (DEMO / "data" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }
    assert {split: len(them) for split, them in rows.items()} == {"train": 4000, "validation": 600, "test": 1994}
    texts = {split: {row["text"] for row in them} for split, them in rows.items()}
    assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]
    assert Counter(row["label"] for row in rows["test"]) == {"positive": 1102, "negative": 892}
    assert all(set(row) == {"text", "label"} for them in rows.values() for row in them)
    assert sum(file.stat().st_size for file in (DEMO / "data").iterdir()) < 1_000_000
    assert "MIT" in (DEMO / "data" / "LICENSE").read_text()


def test_encoder_parameters_are_those_of_a_real_network(demo: ModuleType) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40)
    real = sum(parameter.numel() for parameter in BertModel(config).encoder.parameters())
    structure = {"hidden_size": 24, "attention_heads": [4, 4, 4], "ffn_width": [40, 40, 40]}
    assert demo.encoder_parameters(structure, head_size=6) == real


def side(accuracy: float, fp32: float, int8: float, ffn: int) -> dict[str, Any]:
    """One side of a result, as far as the promises look at it."""
    latency = [
        {"runtime": name, "batch_size": 1, "p50": p50}
        for name, p50 in (("onnxruntime", fp32), ("onnxruntime_int8", int8))
    ]
    structure = {"hidden_size": 8, "attention_heads": [2], "ffn_width": [ffn]}
    return {"metrics": {"accuracy": {"value": accuracy}}, "latency": latency, "structure": structure, "size": 1000}


class Artifacts:
    """A client that knows one artifact."""

    def __init__(self, size: int) -> None:
        self._size = size

    def job_artifacts(self, job_id: str) -> list[dict[str, Any]]:
        """The int8 ONNX file."""
        return [{"path": "onnx/model_int8.onnx", "size": self._size}]


@pytest.mark.parametrize(
    ("after", "size", "missed"),
    [
        (side(0.87, 0.5, 0.3, 16), 200, []),
        (side(0.85, 0.5, 0.3, 16), 200, [1]),
        (side(0.87, 0.6, 0.3, 16), 200, [2]),
        (side(0.87, 0.5, 0.4, 16), 200, [3]),
        (side(0.87, 0.5, 0.3, 16), 300, [4]),
        (side(0.87, 0.5, 0.3, 200), 200, [0]),
    ],
)
def test_a_promise_that_is_not_kept_is_told(
    demo: ModuleType, after: dict[str, Any], size: int, missed: list[int]
) -> None:
    job = {"id": "job_1", "result": {"before": side(0.9, 1.0, 0.7, 80), "after": after}}
    rows = demo.check(Artifacts(size), job)
    assert [index for index, row in enumerate(rows) if row[2] == "MISSED"] == missed


def test_the_whole_of_it_on_a_small_network(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "demo"
    tiny_dataset(here / "data")
    shutil.copy(DEMO / "classify.py", here)
    job = json.loads((DEMO / "job.json").read_text())
    job |= {"max_length": None, "acceptance": [], "benchmark": {"batch_sizes": [1], "sequence_length": 16}}
    (here / "job.json").write_text(json.dumps(job))
    encoder = tiny_model(tmp_path / "encoder", head=False)
    monkeypatch.setattr(demo, "HERE", here)
    monkeypatch.setattr(demo, "encoder_folder", lambda: encoder)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "out")])
    code = demo.main()
    printed = capfd.readouterr().out
    assert code in (0, 1), "a network this small need not get faster"
    assert "the sha256 agrees" in printed
    assert "Loaded with plain transformers in a fresh process" in printed
    assert "onnxruntime_int8 p50" in printed
    assert str(tmp_path / "out" / "pruned" / "report.html") in printed
    assert json.loads((tmp_path / "out" / "pruned" / "config.json").read_text())["model_type"] == "bert"
