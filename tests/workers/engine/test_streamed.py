"""Jobs from file to file: the same weights go as where the network is built, and nothing is imported to run it."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.specs import JobSpec
from tests.workers.engine.test_main import known_of
from tests.workers.engine.tiny import FAMILIES, tiny_network
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.streamed import compress_files, is_projection, is_streamed
from workers.engine.structures.weights import linears_of
from workers.engine.subject import Anatomy, Subject
from workers.engine.surgery import Theatre, apply_cut

HALF = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
TWO_OF_FOUR = {"structure": "weights", "pattern": "2:4", "criterion": {"kind": "magnitude"}}
BLOCKS = {**HALF, "pattern": "block", "block_size": 4, "scope": "global"}


def spec_of(*cuts: dict[str, Any], **parts: Any) -> JobSpec:
    order = {
        "name": "streamed",
        "model_id": "mdl_01JXXXXXXXXXXXXXXXXXXXXXXX",
        "task": "text-classification",
        "pruning": {"cuts": list(cuts or (HALF,))},
        "benchmark": None,
    }
    return JobSpec.model_validate(order | parts)


def run(folder: Path, spec: JobSpec) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = io.StringIO()
    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    result = compress_files(folder, spec, known_of(folder / "in" / "model"), Reporter(lines))
    return result, [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_what_the_live_network_would_lose(family: str) -> None:
    network = tiny_network(family)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    stacks = [side.stack.name for side in family_of(network).sides(network)]
    for stack in [None, *(stacks if len(stacks) > 1 else [])]:
        live = {names[id(weight_of(linear))] for linear in linears_of(network, stack)}
        matrices = [name for name, parameter in network.named_parameters() if parameter.dim() == 2]
        assert {name for name in matrices if is_projection(name, stack)} == live


@pytest.mark.parametrize(
    ("family", "cuts"),
    [("bert", [HALF]), ("gpt2", [TWO_OF_FOUR]), ("marian", [BLOCKS]), ("llama", [HALF, TWO_OF_FOUR])],
)
def test_the_same_weights_go_as_in_the_live_network(family: str, cuts: list[dict[str, Any]], tmp_path: Path) -> None:
    network = tiny_network(family)
    network.save_pretrained(tmp_path / "in" / "model")
    spec = spec_of(*cuts)
    run(tmp_path, spec)
    subject = Subject(network, network, None, tmp_path, Anatomy.of(network))
    theatre = Theatre(None, Reporter(io.StringIO()), torch.Generator())  # type: ignore[arg-type] # no part is read here
    for cut in spec.pruning.cuts:
        apply_cut(subject, cut, cut.share, theatre)
    found = load_file(tmp_path / "out" / "huggingface" / "model.safetensors")
    assert found.keys() <= network.state_dict().keys()
    assert all(torch.equal(found[name], network.state_dict()[name]) for name in found)


def test_the_result_of_a_family_that_nobody_knows(tmp_path: Path) -> None:
    model = tmp_path / "in" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "config.json").write_text('{"model_type": "novel"}')
    weights = {"blocks.0.mix.weight": torch.randn(64, 64), "word_embeddings.weight": torch.randn(8, 64)}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    spec = spec_of(acceptance=[{"metric": "size", "max_ratio": 0.9}])
    result, lines = run(tmp_path, spec)
    before, after = result["before"], result["after"]
    assert (before["parameters"], before["nonzero_parameters"]) == (4608, 4608)
    assert (after["parameters"], after["nonzero_parameters"]) == (4608, 4608 - 2048)
    assert after["compressed_size"] < 0.7 * after["size"] == 0.7 * before["size"]
    assert (result["passed"], result["verdict"][0]["measured"]) == (False, 1.0)
    assert result["model"]["family"] == "novel" and result["model"]["directory"] == "huggingface"
    pruned = load_file(tmp_path / "out" / "huggingface" / "model.safetensors")
    assert torch.equal(pruned["word_embeddings.weight"], weights["word_embeddings.weight"])
    assert (tmp_path / "out" / "huggingface" / "1_Pooling" / "config.json").exists()
    assert (tmp_path / "out" / "compressed" / "model.bitmask.safetensors").exists()
    assert "unpacked and is the same" in (tmp_path / "out" / "report" / "report.html").read_text()
    assert {line["phase"] for line in lines if line["type"] == "phase"} >= {"loading", "pruning", "verifying"}
    assert [line["data"]["removed"] for line in lines if line["type"] == "event"] == [2048]


def test_what_reads_data_or_runs_is_not_streamed() -> None:
    known = {"facts": {"uniform": True}}
    assert is_streamed(spec_of(), known)
    assert not is_streamed(spec_of(), {"facts": {"uniform": False}})
    neurons = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
    activation = {**HALF, "criterion": {"kind": "activation"}}
    for spec in (
        spec_of(HALF, neurons),
        spec_of(activation),
        spec_of(benchmark={}),
        spec_of(exports=["huggingface", "onnx"]),
        spec_of(finetuning={"epochs": 1}),
        spec_of(dataset_id="ds_01JXXXXXXXXXXXXXXXXXXXXXXX"),
    ):
        assert not is_streamed(spec, known)


def test_nothing_that_runs_networks_is_imported(tmp_path: Path) -> None:
    """A fresh process, because this one has PyTorch."""
    tiny_network("bert").save_pretrained(tmp_path / "in" / "model")
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    told = {"configuration": spec_of().model_dump(mode="json"), "model": known_of(tmp_path / "in" / "model")}
    (tmp_path / "order.json").write_text(json.dumps(told | {"max_threads": 1}))
    code = (
        "import os, sys; from workers.engine.__main__ import main; done = main(); print(done, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "--report-fd", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr
    assert (tmp_path / "result.json").exists()


def test_a_weight_that_is_not_finite_ends_the_job(tmp_path: Path) -> None:
    model = tmp_path / "in" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    save_file({"blocks.0.mix.weight": torch.full((4, 4), torch.nan)}, model / "model.safetensors")
    with pytest.raises(EngineError) as caught:
        run(tmp_path, spec_of())
    assert (caught.value.code, caught.value.blame) == ("NOT_FINITE", "user")
