import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors import safe_open

from tests.workers.engine.tiny import tiny_network
from workers.engine import modeling_secateur
from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.modeling_secateur import differences, sized, stock_twin
from workers.engine.tasks import TASKS

FAMILIES = ("bert", "distilbert", "roberta")
TASK = TASKS["text-classification"]
INERT = ("tokenizer.json", "vocab.txt", "chat_template.jinja", "1_Pooling/config.json", "modules.json")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "uploaded"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in INERT:
        (folder / name).write_text(f'"{name}"')
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "modeling.py", "weights.bin"):
        (folder / name).write_text('"must not travel"')
    (folder / "secret.txt").symlink_to("/etc/hostname")
    return folder


def test_stock_export_has_nothing_of_ours(tmp_path: Path, source: Path) -> None:
    EXPORTERS["huggingface"].export(tiny_network("bert"), tmp_path / "out", source, TASK)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert "auto_map" not in config
    assert not [key for key in config if key.startswith("secateur")]
    assert not list((tmp_path / "out").glob("*.py"))


def test_stock_export_of_our_class_is_stock_again(tmp_path: Path, source: Path) -> None:
    network = tiny_network("roberta")
    network.config.secateur_sizes = differences(network, stock_twin(network))
    network.config.auto_map = {"AutoModelForSequenceClassification": "modeling_secateur.X"}
    ours = sized(type(network))(network.config)  # type: ignore[arg-type] # classes are hashable
    EXPORTERS["huggingface"].export(ours, tmp_path / "out", source, TASK)
    saved = json.loads((tmp_path / "out/config.json").read_text())
    assert saved["architectures"] == ["RobertaForSequenceClassification"]
    assert not {"auto_map", "secateur_sizes"} & saved.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_export_refuses_sizes_per_layer(family: str, tmp_path: Path, source: Path) -> None:
    with pytest.raises(EngineError, match="huggingface_custom") as caught:
        EXPORTERS["huggingface"].export(tiny_network(family, uneven=True), tmp_path / "out", source, TASK)
    assert (caught.value.code, caught.value.blame) == ("EXPORT_FAILED", "user")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_custom_export_carries_the_modeling_file_and_the_structure(family: str, tmp_path: Path, source: Path) -> None:
    EXPORTERS["huggingface_custom"].export(tiny_network(family, uneven=True), tmp_path, source, TASK)
    config = json.loads((tmp_path / "config.json").read_text())
    (name,) = config["architectures"]
    assert config["auto_map"] == {"AutoModelForSequenceClassification": f"modeling_secateur.{name}"}
    assert config["model_type"] == family
    assert name == f"Secateur{type(tiny_network(family)).__name__}"
    shapes = config["secateur_sizes"]["parameters"]
    network = tiny_network(family, uneven=True)
    assert shapes and all(list(network.get_parameter(path).shape) == shape for path, shape in shapes.items())
    assert (tmp_path / "modeling_secateur.py").read_text() == Path(modeling_secateur.__file__).read_text()


def test_inert_files_travel_and_others_do_not(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    EXPORTERS["huggingface"].export(tiny_network("distilbert"), out, source, TASK)
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert files == {"config.json", "model.safetensors", *INERT}
    assert (out / "vocab.txt").read_text() == '"vocab.txt"'


def test_weights_are_those_of_the_network(tmp_path: Path, source: Path) -> None:
    network = tiny_network("bert", uneven=True)
    EXPORTERS["huggingface_custom"].export(network, tmp_path, source, TASK)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = network.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_onnx_has_free_axes_named_ends_and_no_trace_of_this_machine(tmp_path: Path, source: Path) -> None:
    network = tiny_network("bert", uneven=True).train()
    EXPORTERS["onnx"].export(network, tmp_path, source, TASK)
    assert network.training
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    axes = {end.name: [d.dim_param for d in end.type.tensor_type.shape.dim] for end in (*graph.input, *graph.output)}
    assert axes["input_ids"] == axes["attention_mask"] == axes["token_type_ids"] == ["batch", "sequence"]
    assert axes["logits"][0] == "batch"
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent.parent).encode() not in content
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["model.onnx"]


def test_onnx_asks_for_token_types_only_where_the_network_knows_several(tmp_path: Path, source: Path) -> None:
    EXPORTERS["onnx"].export(tiny_network("roberta"), tmp_path, source, TASK)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert [end.name for end in graph.input] == ["input_ids", "attention_mask"]


def test_int8_holds_embeddings_and_matrices_in_int8_and_makes_its_own_fp32_file(tmp_path: Path, source: Path) -> None:
    network = tiny_network("distilbert", vocabulary=4000)
    EXPORTERS["onnx_int8"].export(network, tmp_path / "alone", source, TASK)
    assert [file.name for file in (tmp_path / "alone").iterdir()] == ["model_int8.onnx"]
    EXPORTERS["onnx"].export(network, tmp_path / "both", source, TASK)
    EXPORTERS["onnx_int8"].export(network, tmp_path / "both", source, TASK)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "both").iterdir()}
    assert sizes["model_int8.onnx"] < sizes["model.onnx"] / 2
    weights = onnx.load(str(tmp_path / "both/model_int8.onnx")).graph.initializer
    matrices = [tensor for tensor in weights if len(tensor.dims) == 2 and "position_ids" not in tensor.name]
    assert len(matrices) == 2 + 2 * 6 + 2
    assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
