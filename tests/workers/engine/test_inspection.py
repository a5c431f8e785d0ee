"""Inspections: what is redundant by construction is found, trials cost what they should, the report shows it all."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from service.catalog import FAMILIES
from service.ids import new_id
from service.specs.criteria import Fisher, Magnitude, Taylor
from service.specs.findings import Alike, Findings
from service.specs.inspection import Inspection, Scoring
from tests.models import tiny_dataset, tiny_model
from tests.workers.engine.test_main import known_of, start
from tests.workers.engine.test_reporting import Page
from tests.workers.engine.tiny import tiny_inputs, tiny_network
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.loading import load_network
from workers.engine.inspection import inspect
from workers.engine.inspection.charts import shades
from workers.engine.inspection.layers import between_layers, weights_alike
from workers.engine.inspection.near_zero import near_zero
from workers.engine.inspection.report import Record, render
from workers.engine.inspection.telling import least_changed, tell_alike
from workers.engine.inspection.trials import Gauge, score_share, trials
from workers.engine.inspection.units import idle_share, score
from workers.engine.recovery import TRAINING_COST
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.layers import Layers
from workers.engine.tasks import Settings
from workers.engine.tasks.text_classification import TextClassification

AUTO = "AutoModelForSequenceClassification"
READING: list[dict[str, Any]] = [{"kind": "taylor", "samples": 64}, {"kind": "similarity", "samples": 64}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier and rows: its first layer has a dead head and dead neurons, and its second does nothing."""
    folder = tmp_path_factory.mktemp("inspection")
    model = tiny_model(folder / "in" / "model")
    network = load_network(model, AUTO)
    first, second = family_of(network).layers(network)
    with torch.no_grad():
        weight_of(first.attentions[0].output)[:, 8:16] = 0
        weight_of(first.ffn_out)[:, 5:29] = 0
        for projection in (second.attentions[0].output, second.ffn_out):
            for parameter in projection.parameters():
                parameter.zero_()
    network.save_pretrained(model)
    tiny_dataset(folder / "in" / "dataset")
    return folder


def order(**parts: Any) -> Inspection:
    """Heads, neurons and layers by taylor and similarity."""
    return Inspection.model_validate(
        {
            "model_id": new_id("mdl"),
            "dataset_id": new_id("ds"),
            "task": "text-classification",
            "structures": ["attention_heads", "ffn_neurons", "layers"],
            "criteria": READING,
            "max_length": 16,
            "device": "cpu",
        }
        | parts
    )


def inspected(folder: Path, spec: Inspection) -> tuple[Findings, list[dict[str, Any]]]:
    """What was found, and the lines that told of it."""
    lines = io.StringIO()
    result = inspect(folder, spec, known_of(folder / "in" / "model"), Reporter(lines), 1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.pop("engine")["seconds"]["loading"] >= 0
    return Findings.model_validate(result), [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Findings, list[dict[str, Any]]]:
    """One inspection that reads rows; its report lies beside the folder that others write to."""
    found = inspected(folder, order())
    (folder / "out" / "report").rename(folder / "report")
    return found


def groups_of(found: Findings, structure: str, kind: str) -> list[Any]:
    return next(one.groups for one in found.scored if (one.structure, one.criterion.kind) == (structure, kind))


def test_a_dead_head_and_dead_neurons_are_worth_nothing(whole: tuple[Findings, list[dict[str, Any]]]) -> None:
    heads = groups_of(whole[0], "attention_heads", "taylor")[0]
    assert heads.scores[1] == 0 < min(heads.scores[0], *heads.scores[2:])
    neurons = groups_of(whole[0], "ffn_neurons", "taylor")[0]
    assert (neurons.units, neurons.scores, neurons.quantiles[:3]) == (48, None, [0.0] * 3)
    assert 0.5 <= neurons.idle < 1


def test_a_layer_that_does_nothing_is_found_by_its_states(whole: tuple[Findings, list[dict[str, Any]]]) -> None:
    (stack,) = whole[0].alike
    assert stack.states is not None
    layer, cosine = least_changed(stack.states)
    assert layer == 1 and cosine > 0.99
    (layers,) = groups_of(whole[0], "layers", "similarity")
    assert layers.scores[1] < 0.01 < layers.scores[0]


def test_what_is_dead_goes_for_nothing_and_more_costs_more(folder: Path) -> None:
    found, _ = inspected(folder, order(ratios=[0.9, 0.1, 0.5], criteria=[READING[0]], structures=["ffn_neurons"]))
    (one,) = found.scored
    assert found.loss is not None and (found.rows, found.split) == (32, "validation")
    assert [(trial.ratio, trial.of) for trial in one.trials] == [(0.1, 96), (0.5, 96), (0.9, 96)]
    few, half, most = one.trials
    assert (few.score, few.agreement) == (0, 1)
    assert few.loss == pytest.approx(found.loss, rel=1e-4)
    assert [trial.score for trial in one.trials] == sorted(trial.score for trial in one.trials)
    assert half.loss is not None and most.loss is not None
    assert abs(half.loss - found.loss) < abs(most.loss - found.loss)
    assert most.removed == 2 * 43


def test_the_loss_is_that_of_the_network_that_is_left(folder: Path) -> None:
    found, _ = inspected(folder, order(ratios=[0.5], criteria=[READING[1]], structures=["layers"]))
    (one,) = found.scored
    network = load_network(folder / "in" / "model", AUTO)
    STRUCTURES["layers"].cut(network, [torch.tensor([True, False])])
    task = TextClassification(folder / "in" / "dataset", folder / "in" / "model", network, Settings(16))
    assert one.trials[0].loss == pytest.approx(task.evaluate(network, "validation").loss, rel=1e-3)


def test_a_share_that_leaves_no_network_has_no_loss(folder: Path) -> None:
    class NoneLeft(Layers):
        def cut(self, network: PreTrainedModel, keep: list[Tensor]) -> None:
            raise EngineError("CUT_OUT_OF_REACH", "nothing would be left", blame="user")

    network = load_network(folder / "in" / "model", AUTO)
    task = TextClassification(folder / "in" / "dataset", folder / "in" / "model", network, Settings(16))
    gauge = Gauge(network, task, rows=8, seed=0)
    (cut,) = order(criteria=[READING[1]], structures=["layers"]).cuts
    scores = [torch.tensor([0.1, 0.2])]
    (trial,) = trials(network, NoneLeft(), cut, scores, [0.5], gauge, comparable=True, advance=lambda _: None)
    assert (trial.removed, trial.loss, trial.agreement) == (1, None, None)
    assert gauge.loss is not None and gauge.rows == 8


def test_everything_is_told_as_it_is_found(whole: tuple[Findings, list[dict[str, Any]]]) -> None:
    found, lines = whole
    told = [line["message"] for line in lines if line["type"] == "event"]
    assert told == found.highlights
    begins = [line.split(".")[0] for line in told]
    assert "Attention heads by taylor: most redundant is head 2 of layer 1 of the encoder (attention" in begins
    assert any(line.startswith("Layer 2 of the encoder changes its input least") for line in begins)
    phases = list(dict.fromkeys(line["phase"] for line in lines if line["type"] == "phase"))
    assert phases == ["loading", "evaluating", "analyzing"]
    points = {line["name"]: line["step"] for line in lines if line["type"] == "metric"}
    assert points == dict.fromkeys(
        ["attention_heads/taylor/loss", "ffn_neurons/taylor/loss", "layers/taylor/loss", "layers/similarity/loss"], 75
    )


def test_the_report_has_every_score_and_a_picture_of_each_kind(
    folder: Path, whole: tuple[Findings, list[dict[str, Any]]]
) -> None:
    data = json.loads((folder / "report" / "report.json").read_text())
    neurons = [unit for unit in data["units"] if unit["structure"] == "ffn_neurons"]
    assert [len(unit["scores"]) for unit in neurons] == [48, 48]
    page = Page((folder / "report" / "report.html").read_text())
    assert page.open == [] and all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") >= 3
    for expected in ("What could be cut", "Layer by layer", "Layers that are alike", "Nothing was cut"):
        assert expected in page.text


def test_a_page_escapes_what_a_client_wrote(folder: Path, whole: tuple[Findings, list[dict[str, Any]]]) -> None:
    engine = {"device": "cpu", "peak_memory": 1, "seconds": {}, "versions": {}}
    spec = order(name="<script>x</script>").model_dump(mode="json")
    record = Record(spec, known_of(folder / "in" / "model"), whole[0].model_dump() | {"engine": engine}, [], [])
    html = render(record)
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert render(record) == html


def test_without_rows_scores_are_told_and_no_loss(tmp_path: Path) -> None:
    tiny_model(tmp_path / "in" / "model")
    spec = order(dataset_id=None, criteria=[{"kind": "magnitude"}], structures=["layers", "weights"])
    found, lines = inspected(tmp_path, spec)
    assert (found.loss, found.rows, found.split) == (None, 0, None)
    assert [(trial.loss, trial.agreement) for one in found.scored for trial in one.trials] == [(None, None)] * 8
    weights = found.scored[1]
    assert [(group.layer, group.units, group.scores) for group in weights.groups] == [(0, 7168, None), (1, 7168, None)]
    assert [trial.removed for trial in weights.trials] == [1432, 3584, 7168, 10752]
    assert found.alike[0].states is None and found.alike[0].weights is not None
    assert not [line for line in lines if line["type"] == "metric"]


def test_a_head_is_trained_first_where_a_bare_encoder_has_none(tmp_path: Path) -> None:
    tiny_model(tmp_path / "in" / "model", head=False)
    tiny_dataset(tmp_path / "in" / "dataset")
    spec = order(
        baseline={"epochs": 2, "learning_rate": 3e-3}, criteria=[READING[0]], structures=["layers"], ratios=[0.5]
    )
    found, lines = inspected(tmp_path, spec)
    assert found.loss is not None and found.loss < 0.69
    assert "finetuning" in [line.get("phase") for line in lines]


def test_weights_near_zero_are_counted_matrix_by_matrix(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name] = torch.ones_like(tensors[name])
    tensors[name][:8], tensors[name][8:16] = 0, 0.05
    save_file(tensors, file, metadata={"format": "pt"})
    found, matrices = near_zero(model, 0.1, lambda _: None)
    worst = found.matrices[0]
    assert (worst.matrix, worst.layer, worst.weights, worst.share, worst.zeros) == (name, 1, 32 * 48, 0.5, 0.25)
    assert {near.matrix for near in matrices} == {n for n in tensors if ".layer." in n and tensors[n].dim() == 2}
    assert [layer.layer for layer in found.layers] == [0, 1]
    assert sum(layer.weights for layer in found.layers) == found.weights == 14336
    normal = [near.share for near in matrices if near.matrix != name]
    assert max(normal) < 0.12 and min(normal) > 0.05


def test_the_stacks_of_an_encoder_decoder_are_told_apart(tmp_path: Path) -> None:
    tiny_network("t5").save_pretrained(tmp_path)
    found, _ = near_zero(tmp_path, 0.1, lambda _: None)
    places = [(layer.stack, layer.layer) for layer in found.layers]
    assert places == [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1)]


def test_of_an_unknown_family_only_files_are_read(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "in" / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}))
    spec = order(task=None, dataset_id=None, criteria=[{"kind": "magnitude"}], structures=["weights"], max_length=None)
    told = {"configuration": spec.model_dump(mode="json"), "model": known_of(model), "max_threads": 1}
    (tmp_path / "order.json").write_text(json.dumps(told))
    code, lines = start(tmp_path)
    assert code == 0, lines
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["near_zero"]["weights"] == 14336 and "torch" not in result["engine"]["versions"]
    assert (result["scored"], result["alike"], len(result["highlights"])) == ([], [], 1)
    assert (tmp_path / "out" / "report" / "report.html").exists()


def test_a_broken_network_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "in" / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError) as caught:
        inspected(tmp_path, order(dataset_id=None, criteria=[{"kind": "magnitude"}]))
    assert (caught.value.code, caught.value.blame) == ("NOT_FINITE", "user")


# Scores


def test_criteria_that_need_the_same_share_one_reading(folder: Path) -> None:
    network = load_network(folder / "in" / "model", AUTO)
    task = TextClassification(folder / "in" / "dataset", folder / "in" / "model", network, Settings(16))
    heads = STRUCTURES["attention_heads"]
    specs: list[Scoring] = [
        Taylor(kind="taylor", samples=48),
        Magnitude(kind="magnitude"),
        Fisher(kind="fisher", samples=48),
    ]

    def scored(*some: Scoring) -> tuple[list[list[Tensor]], int]:
        steps: list[int] = []
        found = score(network, heads, some, task, torch.Generator(), steps.append)
        return [scores for _, scores in found], sum(steps)

    together, read = scored(*specs)
    apart = [scored(spec) for spec in specs]
    assert read == TRAINING_COST * 48 == sum(steps for _, steps in apart) / 2
    torch.testing.assert_close(together, [scores for found, _ in apart for scores in found])


def test_idle_units_are_the_lowest_that_hold_little_together() -> None:
    assert idle_share(torch.tensor([0.0, 0.0, 1.0, 4.0, 95.0])) == 0.8
    assert idle_share(torch.ones(10)) == 0
    assert idle_share(torch.zeros(3)) == 1


def test_scores_in_no_common_unit_count_group_by_group() -> None:
    scores = [torch.tensor([1.0, 3.0]), torch.tensor([100.0, 100.0])]
    keep = [torch.tensor([False, True]), torch.tensor([True, True])]
    assert score_share(scores, keep, comparable=False) == 0.125
    assert score_share(scores, keep, comparable=True) == pytest.approx(1 / 204)


def test_shades_reach_from_the_lowest_score_to_the_highest() -> None:
    assert shades([{"scores": [4.0, 1.0]}, {"scores": [0.0, 16.0]}]) == [[0.5, 0.25], [0.0, 1.0]]
    assert shades([{"scores": [9.0, 9.0]}]) == [[1.0, 1.0]]


# Layers


def duplicated(network: PreTrainedModel) -> PreTrainedModel:
    """The network with its second layer a copy of the first."""
    first, second = family_of(network).sides(network)[0].modules
    second.load_state_dict(first.state_dict())
    return network


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_a_layer_that_repeats_another_is_found_by_its_weights(family: str) -> None:
    network = tiny_network(family)
    (side,) = family_of(network).sides(network)
    apart = weights_alike(side.modules)
    assert apart is not None and abs(float(apart[0, 1])) < 0.2
    table = weights_alike(family_of(duplicated(network)).sides(network)[0].modules)
    torch.testing.assert_close(table, torch.ones(2, 2))


def test_twins_are_told() -> None:
    one = Alike(stack="decoder", states=None, weights=[[1.0, 0.2, 0.99], [0.2, 1.0, 0.1], [0.99, 0.1, 1.0]])
    lines = io.StringIO()
    assert list(tell_alike(one, Reporter(lines))) == ["Layers 1 and 3 of the decoder have nearly the same weights."]
    assert json.loads(lines.getvalue())["data"] == {"stack": "decoder", "layers": [0, 2]}


def test_layers_of_different_sizes_have_no_weights_in_common() -> None:
    network = tiny_network("bert", uneven=True)
    assert weights_alike(family_of(network).sides(network)[0].modules) is None


@pytest.mark.parametrize("family", sorted(name for name, family in FAMILIES.items() if "layers" in family.structures))
def test_states_of_every_family_are_compared(family: str) -> None:
    network = tiny_network(family)
    sides = family_of(network).sides(network)
    tables = between_layers(network, sides, [tiny_inputs(network)])
    assert [len(table) for table in tables] == [len(side.modules) + 1 for side in sides]
    for table in tables:
        torch.testing.assert_close(table.diagonal(), torch.ones(len(table)))
        torch.testing.assert_close(table, table.T)
        assert float(table.min()) < 0.999
