"""Contract of every structure with every family: a cut equals its mask, and survives saving."""

from pathlib import Path

import pytest
import torch

from tests.models import tiny_network as network_of_class
from tests.workers.engine.tiny import FAMILIES as NAMES
from tests.workers.engine.tiny import PAIRS, halves, logits, task_of, tiny_inputs, tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.families.loading import load_network
from workers.engine.families.sizes import is_stock, structure_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated
from workers.engine.tasks import TASKS


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_cut_equals_its_mask_and_survives_saving(family: str, name: str, tmp_path: Path) -> None:
    network, structure = tiny_network(family), STRUCTURES[name]
    inputs, keep = tiny_inputs(network), halves(tiny_network(family), name)
    whole, before = logits(network, inputs), structure_of(network)
    with gated(network, structure, [Gate(mask.float(), learn=False) for mask in keep]):
        masked = logits(network, inputs)
    assert not torch.allclose(masked, whole, atol=1e-4)
    assert torch.equal(logits(network, inputs), whole), "the gates must be gone after the block"
    structure.cut(network, keep)
    cut = logits(network, inputs)
    if name != "hidden_size":  # norms are taken over what is left, which no mask imitates
        assert torch.allclose(cut, masked, atol=1e-4)
    if name != "weights":
        assert structure_of(network) != before
    task = task_of(family)
    form = "huggingface" if is_stock(network) else "huggingface_custom"
    EXPORTERS[form].export(network, tmp_path / form, tmp_path, task)
    again = load_network(tmp_path / form, task.auto).eval()
    again.set_attn_implementation("eager")
    assert structure_of(again) == structure_of(network)
    assert torch.allclose(logits(again, inputs), cut, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_a_custom_form_carries_any_widths(family: str, tmp_path: Path) -> None:
    network = tiny_network(family, uneven=True)
    task, inputs = task_of(family), tiny_inputs(network)
    EXPORTERS["huggingface_custom"].export(network, tmp_path, tmp_path, task)
    again = load_network(tmp_path, task.auto).eval()
    again.set_attn_implementation("eager")
    assert torch.allclose(logits(again, inputs), logits(network, inputs), atol=1e-5)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_an_open_gate_changes_nothing_and_has_a_gradient_per_row(family: str, name: str) -> None:
    network, structure = tiny_network(family), STRUCTURES[name]
    inputs = tiny_inputs(network)
    whole = logits(network, inputs)
    gates = [Gate(torch.ones(group.units), learn=True) for group in structure.groups(network)]
    with gated(network, structure, gates):
        found = network(**inputs).logits
        assert torch.allclose(found, whole, atol=1e-5)
        found.square().sum().backward()
    rows = 1 if name == "weights" else 3
    for gate, group in zip(gates, structure.groups(network), strict=True):
        assert gate.gradients.shape == (rows, group.units)
        assert bool(gate.gradients.any())


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "weights"])
def test_the_gradient_of_a_row_is_that_of_the_row_alone(family: str, name: str) -> None:
    network, structure = tiny_network(family), STRUCTURES[name]
    inputs = tiny_inputs(network)
    alone = {key: value[1:2] for key, value in inputs.items()}
    gates = [Gate(torch.ones(group.units), learn=True) for group in structure.groups(network)]
    with gated(network, structure, gates):
        network(**inputs).logits[..., 0].sum().backward()
        together = [gate.gradients for gate in gates]
        network(**alone).logits[..., 0].sum().backward()
    for gate, rows in zip(gates, together, strict=True):
        assert torch.allclose(gate.gradients[0], rows[1], atol=1e-4)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_groups_own_runs_of_their_parameters_and_keep_their_keys(family: str, name: str) -> None:
    groups = STRUCTURES[name].groups(tiny_network(family))
    for group in groups:
        assert all(
            part.parameter.shape[part.dim] % (group.units * part.fused) == 0
            or part.unit is not None
            or part.parameter.numel() == group.units
            for part in group.parts
        )
        assert group.totals(torch.ones_like).sum() == sum(part.parameter.numel() for part in group.parts)
    keys = [(group.key, group.layer) for group in groups]
    assert len(set(keys)) == len(keys)


def test_a_decoder_of_an_encoder_decoder_loses_heads_of_both_attentions() -> None:
    places = [(g.stack, g.layer, g.place) for g in STRUCTURES["attention_heads"].groups(tiny_network("bart"))]
    decoder = [("decoder", layer, place) for layer in (0, 1) for place in ("self_attn", "encoder_attn")]
    assert places == [("encoder", 0, "self_attn"), ("encoder", 1, "self_attn"), *decoder]


@pytest.mark.parametrize("name", ["attention_heads", "hidden_size"])
@pytest.mark.parametrize(
    ("family", "architecture"), [("marian", "MarianMTModel"), ("bart", "BartForConditionalGeneration")]
)
def test_heads_are_as_wide_as_those_of_their_stack(family: str, architecture: str, name: str, tmp_path: Path) -> None:
    """Four heads of 8 features in the encoder, two of 16 in both attentions of the decoder."""
    network, structure = network_of_class(family, architecture), STRUCTURES[name]
    network.set_attn_implementation("eager")
    groups = STRUCTURES["attention_heads"].groups(network)
    assert [(group.stack, group.units) for group in groups] == [("encoder", 4)] * 2 + [("decoder", 2)] * 2
    sizes, inputs, keep = structure_of(network), tiny_inputs(network), halves(network, name)
    with gated(network, structure, [Gate(mask.float(), learn=False) for mask in keep]):
        masked = logits(network, inputs)
    structure.cut(network, keep)
    cut = logits(network, inputs)
    if name == "attention_heads":
        assert torch.allclose(cut, masked, atol=1e-5)
        assert structure_of(network) == sizes | {"attention_heads": [2, 2], "decoder_attention_heads": [1]}
    EXPORTERS["huggingface_custom"].export(network, tmp_path, tmp_path, TASKS["translation"])
    again = load_network(tmp_path, "AutoModelForSeq2SeqLM").eval()
    again.set_attn_implementation("eager")
    assert structure_of(again) == structure_of(network)
    assert torch.allclose(logits(again, inputs), cut, atol=1e-5)


def test_shared_key_value_heads_go_with_all_that_read_them() -> None:
    network = tiny_network("llama")
    groups = STRUCTURES["attention_heads"].groups(network)
    assert [group.units for group in groups] == [2, 2]
    STRUCTURES["attention_heads"].cut(network, [torch.tensor([True, False]), torch.tensor([False, True])])
    sizes = structure_of(network)
    assert (sizes["attention_heads"], sizes["key_value_heads"]) == ([2, 2], [1, 1])


def test_layers_that_are_one_set_of_weights_cannot_be_dropped() -> None:
    assert STRUCTURES["layers"].groups(tiny_network("albert")) == []


@pytest.mark.parametrize("family", NAMES)
def test_hidden_size_narrows_the_stream_and_leaves_heads_and_neurons(family: str) -> None:
    network = tiny_network(family)
    before = structure_of(network)
    STRUCTURES["hidden_size"].cut(network, [torch.arange(32) % 4 > 0])
    assert structure_of(network) == before | {"hidden_size": 24}
    assert bool(logits(network, tiny_inputs(network)).isfinite().all())
