"""Jobs with one block in memory: the same result as with the network in memory."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from service.ids import new_id
from service.specs import JobSpec
from tests.models import FILLER
from tests.workers.engine.test_main import known_of, start
from tests.workers.engine.tiny import tiny_network
from tests.workers.engine.tiny_tasks import tokenizer_in, write
from workers.engine.blockwise import compress_blocks, count_flops, is_blockwise
from workers.engine.compress import compress
from workers.engine.failures import EngineError
from workers.engine.families.sizes import structure_of
from workers.engine.reporter import Reporter
from workers.engine.streaming.shards import read_shards

SECOND_ORDER = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "second_order", "samples": 16}}
ACTIVATION = {"structure": "weights", "ratio": 0.6, "scope": "global", "criterion": {"kind": "activation"}}
MAGNITUDE = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}


def spec_of(*cuts: dict[str, Any], **parts: Any) -> JobSpec:
    order = {
        "name": "blockwise",
        "model_id": new_id("mdl"),
        "dataset_id": new_id("ds"),
        "task": "causal-lm",
        "pruning": {"cuts": list(cuts or (SECOND_ORDER,))},
        "benchmark": None,
        "max_length": 12,
        "device": "cpu",
        "precision": "float32",
    }
    return JobSpec.model_validate(order | parts)


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [{"text": " ".join(chance.choices(FILLER, k=11))} for _ in range(count)]


def job_in(folder: Path, family: str, dtype: torch.dtype, **splits: list[dict[str, Any]]) -> dict[str, Any]:
    """A model in several files and its data; returns what the service knows of the model."""
    model = tokenizer_in(folder / "in" / "model")
    network: Any = tiny_network(family)
    network.to(dtype).save_pretrained(model, max_shard_size="20KB")
    write(folder / "in" / "dataset", **(splits or {"train": texts(24, 1), "test": texts(9, 2)}))
    known = known_of(model)
    known |= {"parameters": sum(p.numel() for p in network.parameters()), "structure": structure_of(network)}
    return known


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "out" / "huggingface").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("family", "dtype", "cuts"),
    [("llama", torch.float32, [SECOND_ORDER]), ("gpt2", torch.bfloat16, [ACTIVATION]), ("mistral", torch.float32, [])],
)
def test_the_result_is_that_of_a_network_in_memory(
    family: str, dtype: torch.dtype, cuts: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec, results = spec_of(*cuts, acceptance=[{"metric": "parameters", "max_ratio": 1.0}]), []
    for way in ("blocks", "whole"):
        known, reporter = job_in(tmp_path / way, family, dtype), Reporter(io.StringIO())
        if way == "blocks":
            results.append(compress_blocks(tmp_path / way, spec, known, reporter, 1))
        else:
            results.append(compress(tmp_path / way, spec, reporter, 1))
    found, expected = (weights_in(tmp_path / way) for way in ("blocks", "whole"))
    assert expected.keys() <= found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    for side in ("before", "after"):
        mine, other = (result[side] for result in results)
        perplexities = [figures.pop("metrics")["perplexity"] for figures in (mine, other)]
        assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)
        sizes = [figures.pop("compressed_size", 1) for figures in (mine, other)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.2)
        assert mine == other
    assert results[0]["verdict"] == results[1]["verdict"] and results[0]["passed"]
    assert results[0].keys() == results[1].keys()
    assert results[0]["model"]["directory"] == "huggingface" and results[0]["model"]["task"] == "causal-lm"


def test_a_job_as_a_process(tmp_path: Path) -> None:
    known = job_in(tmp_path, "llama", torch.float32)
    spec = spec_of(SECOND_ORDER, {**ACTIVATION, "ratio": 0.7})
    told = {"configuration": spec.model_dump(mode="json"), "model": known, "max_threads": 1}
    (tmp_path / "order.json").write_text(json.dumps(told))
    code, lines = start(tmp_path)
    assert code == 0, lines
    phases = ["loading", "analyzing", "analyzing", "verifying", "evaluating", "exporting", "verifying"]
    assert [line["phase"] for line in lines if line["type"] == "phase"] == phases
    assert [line["data"]["criterion"] for line in lines if line["type"] == "event"] == ["second_order", "activation"]
    out = tmp_path / "out"
    names = [
        [shard.path.name for shard in read_shards(path)] for path in (tmp_path / "in" / "model", out / "huggingface")
    ]
    assert names[0] == names[1] and len(names[0]) > 1
    assert (out / "huggingface" / "tokenizer.json").exists()
    assert (out / "compressed" / "unpack.py").exists()
    assert "evaluated as they lie in the files" in (out / "report" / "report.html").read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    inside = sum(
        value.numel() for name, value in weights_in(tmp_path).items() if ".layers." in name and value.dim() == 2
    )
    gone = result["before"]["nonzero_parameters"] - result["after"]["nonzero_parameters"]
    assert gone == pytest.approx(0.7 * inside, abs=inside / 1000)
    assert "torch" in result["engine"]["versions"]


def test_rows_that_are_never_judged(tmp_path: Path) -> None:
    known = job_in(tmp_path, "llama", torch.float32, calibration=texts(8, 1))
    result = compress_blocks(tmp_path, spec_of(), known, Reporter(io.StringIO()), 1)
    assert result["before"]["metrics"] == result["after"]["metrics"] == {}
    assert result["after"]["flops"] == count_flops(tmp_path / "in" / "model") > 0


def test_a_network_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    known = job_in(tmp_path, "llama", torch.float32)
    read_shards(tmp_path / "in" / "model")[0].path.unlink()
    with pytest.raises(EngineError) as caught:
        compress_blocks(tmp_path, spec_of(), known, Reporter(io.StringIO()), 1)
    assert caught.value.code == "MODEL_UNUSABLE"


def test_what_trains_runs_or_scores_units_needs_the_network() -> None:
    assert is_blockwise(spec_of())
    assert is_blockwise(spec_of(ACTIVATION, SECOND_ORDER))
    neurons = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "activation"}}
    for spec in (
        spec_of(SECOND_ORDER, MAGNITUDE),
        spec_of(neurons),
        spec_of(task="masked-lm"),
        spec_of(baseline={"epochs": 1}),
        spec_of(finetuning={"epochs": 1}),
        spec_of(pruning={"target": {"metric": "flops", "ratio": 0.5}}),
        spec_of(pruning={"cuts": [SECOND_ORDER], "schedule": {"kind": "gradual"}}),
        spec_of(exports=["huggingface", "onnx"]),
        spec_of(benchmark={}),
    ):
        assert not is_blockwise(spec)
