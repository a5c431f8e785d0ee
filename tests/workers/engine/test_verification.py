import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from tests.workers.engine.tiny import tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.tasks import TASKS
from workers.engine.verification import SHAPES, reference_inputs, run_script, verify

FAMILIES = ("bert", "distilbert", "roberta")
TASK = TASKS["text-classification"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family in every form below one folder: stock sizes for huggingface, sizes per layer for the others."""
    out = tmp_path_factory.mktemp("exported")
    for family in FAMILIES:
        for name, exporter in EXPORTERS.items():
            network = tiny_network(family, uneven=name != "huggingface")
            exporter.export(network, out / family / exporter.folder, out, TASK)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_gives_the_networks_outputs_in_a_fresh_process(family: str, exported: Path, tmp_path: Path) -> None:
    names = [name for name in EXPORTERS if name != "huggingface"]
    artifacts = [(name, exported / family / EXPORTERS[name].folder) for name in names]
    reports = {r["name"]: r for r in verify(tiny_network(family, uneven=True), artifacts, TASK, scratch=tmp_path)}
    assert list(reports) == names
    assert reports["huggingface_custom"]["error"] < 1e-5
    assert reports["onnx"]["error"] < 1e-5
    assert 0 < reports["onnx_int8"]["error"] < 0.2


def test_stock_form_loads_without_our_code(exported: Path, tmp_path: Path) -> None:
    reports = verify(tiny_network("bert"), [("huggingface", exported / "bert/huggingface")], TASK, scratch=tmp_path)
    assert reports == [{"name": "huggingface", "failure": None, "error": pytest.approx(0, abs=1e-6), "agreement": 1.0}]


def test_a_changed_artifact_fails_by_name(exported: Path, tmp_path: Path) -> None:
    """One weight moved in each file, and each is told apart from the sound one."""
    network = tiny_network("bert", uneven=True)
    tampered = tmp_path / "tampered"
    shutil.copytree(exported / "bert", tampered)
    _tamper_safetensors(tampered / "huggingface_custom/model.safetensors")
    _tamper_onnx(tampered / "onnx/model.onnx", "network.classifier.bias")
    artifacts = [(name, tampered / EXPORTERS[name].folder) for name in ("huggingface_custom", "onnx", "onnx_int8")]
    with pytest.raises(EngineError, match="export huggingface_custom failed: outputs differ") as caught:
        verify(network, artifacts, TASK, scratch=tmp_path)
    assert caught.value.code == "VERIFICATION_FAILED"
    answer = json.loads((tmp_path / "verification/answer.json").read_text())
    assert [report["failure"] is None for report in answer] == [False, False, True]


def test_a_foreign_network_fails_even_in_int8(exported: Path, tmp_path: Path) -> None:
    other = tiny_network("bert", seed=1, uneven=True)
    with pytest.raises(EngineError, match="export onnx_int8 failed"):
        verify(other, [("onnx_int8", exported / "bert/onnx")], TASK, scratch=tmp_path)


def test_weights_that_from_pretrained_would_make_up_fail(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(exported / "bert/huggingface", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match="does not load and run"):
        verify(tiny_network("bert"), [("huggingface", folder)], TASK, scratch=tmp_path)


def test_one_broken_artifact_does_not_hide_another(exported: Path, tmp_path: Path) -> None:
    artifacts = [("onnx", tmp_path / "nowhere"), ("huggingface_custom", exported / "roberta/huggingface_custom")]
    with pytest.raises(EngineError, match="export onnx failed: does not load and run"):
        verify(tiny_network("roberta", uneven=True), artifacts, TASK, scratch=tmp_path)
    answer = json.loads((tmp_path / "verification/answer.json").read_text())
    assert [report["failure"] is None for report in answer] == [False, True]


def test_a_network_with_infinite_weights_is_refused(tmp_path: Path) -> None:
    network = tiny_network("bert")
    next(network.parameters()).data.fill_(torch.inf)
    with pytest.raises(EngineError) as caught:
        verify(network, [], TASK, scratch=tmp_path)
    assert caught.value.code == "NOT_FINITE"


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_inputs_have_two_shapes_and_padding(family: str) -> None:
    network = tiny_network(family)
    batches = reference_inputs(network, seed=0)
    assert len({tuple(batch["input_ids"].shape) for batch in batches}) == len(SHAPES) == 2
    for batch in batches:
        padded = batch["attention_mask"] == 0
        assert padded.any()
        assert (batch["input_ids"][padded] == network.config.pad_token_id).all()
        assert (batch["input_ids"][~padded] != network.config.pad_token_id).all()


def test_a_script_that_dies_or_hangs_is_an_engine_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    for source, text in (("raise SystemExit(3)", "died"), ("import time; time.sleep(60)", "too long")):
        script.write_text(source)
        with pytest.raises(EngineError, match=text):
            run_script(script, {"answer": str(tmp_path / "answer.json")}, tmp_path, timeout=1.0)


def _tamper_safetensors(path: Path) -> None:
    weights = load_file(path)
    weights["classifier.bias"][0] += 0.1
    save_file(weights, path, {"format": "pt"})


def _tamper_onnx(path: Path, name: str) -> None:
    network = onnx.load(str(path))
    tensor = next(tensor for tensor in network.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[0] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save_model(network, str(path))
