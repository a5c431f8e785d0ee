"""Contract of every structure and family: a cut equals its mask, and survives saving."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.workers.engine.tiny import FAMILIES as NAMES
from tests.workers.engine.tiny import tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES, family_in, is_stock, structure_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated

PAIRS = [(family, structure) for family in NAMES for structure in STRUCTURES]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def logits(network: PreTrainedModel) -> Tensor:
    ids = torch.randint(2, 120, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        found: Tensor = network(input_ids=ids, attention_mask=mask).logits
    return found


def halves(network: PreTrainedModel, structure: str) -> list[Tensor]:
    """Random masks that keep about half of every group, and its first unit."""
    chance = torch.Generator().manual_seed(2)
    masks = [torch.rand(group.units, generator=chance) < 0.5 for group in STRUCTURES[structure].groups(network)]
    for mask in masks:
        mask[0], mask[-1] = True, False
    return masks


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_cut_equals_its_mask(family: str, name: str) -> None:
    network, structure = tiny_network(family, uneven=name == "ffn_neurons"), STRUCTURES[name]
    keep, whole = halves(network, name), logits(network)
    with gated(network, structure, [Gate(mask.float(), learn=False) for mask in keep]):
        masked = logits(network)
    assert not torch.allclose(masked, whole, atol=1e-3)
    assert torch.equal(logits(network), whole), "the gates must be gone after the block"
    structure.cut(network, keep)
    assert torch.allclose(logits(network), masked, atol=1e-5)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_an_open_gate_changes_nothing_and_has_a_gradient_per_row(family: str, name: str) -> None:
    network, structure = tiny_network(family), STRUCTURES[name]
    whole = logits(network)
    gates = [Gate(torch.ones(group.units), learn=True) for group in structure.groups(network)]
    with gated(network, structure, gates):
        ids = torch.randint(2, 120, (3, 9), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        found = network(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(found, whole, atol=1e-5)
        found.sum().backward()
    rows = 1 if name == "weights" else 3
    for gate, group in zip(gates, structure.groups(network), strict=True):
        assert gate.gradients.shape == (rows, group.units)
        assert bool(gate.gradients.any())


@pytest.mark.parametrize("name", ["attention_heads", "ffn_neurons", "layers"])
def test_the_gradient_of_a_row_is_that_of_the_row_alone(name: str) -> None:
    network, structure = tiny_network("bert"), STRUCTURES[name]
    ids = torch.randint(2, 120, (3, 9), generator=torch.Generator().manual_seed(1))
    gates = [Gate(torch.ones(group.units), learn=True) for group in structure.groups(network)]
    with gated(network, structure, gates):
        network(input_ids=ids).logits[:, 0].sum().backward()
        together = [gate.gradients for gate in gates]
        network(input_ids=ids[1:2]).logits[:, 0].sum().backward()
    for gate, rows in zip(gates, together, strict=True):
        assert torch.allclose(gate.gradients[0], rows[1], atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_a_family_survives_cut_save_load_in_stock_form(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    neurons = [torch.arange(48) % 3 > 0 for _ in range(2)]
    STRUCTURES["ffn_neurons"].cut(network, neurons)
    STRUCTURES["layers"].cut(network, [torch.tensor([False, True])])
    assert is_stock(network)
    assert structure_of(network)["ffn_width"] == [32]
    indices = {getattr(module, "layer_idx", None) for module in network.modules()}
    assert indices <= {None, 0}
    EXPORTERS["huggingface"].export(network, tmp_path, tmp_path)
    loaded = family_in(tmp_path).load(tmp_path)
    assert structure_of(loaded) == structure_of(network)
    assert torch.allclose(logits(loaded), logits(network), atol=1e-6)


@pytest.mark.parametrize("family", NAMES)
def test_a_family_survives_cut_save_load_in_our_form_twice(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    for name in ("attention_heads", "ffn_neurons"):
        STRUCTURES[name].cut(network, halves(network, name))
    assert not is_stock(network)
    for folder in (tmp_path / "one", tmp_path / "two"):
        EXPORTERS["huggingface_custom"].export(network, folder, tmp_path)
        loaded = family_in(folder).load(folder)
        assert structure_of(loaded) == structure_of(network)
        assert torch.allclose(logits(loaded), logits(network), atol=1e-6)
        network = loaded
    STRUCTURES["layers"].cut(network, [torch.tensor([True, False])])
    assert structure_of(network)["layers"] == 1


@pytest.mark.parametrize("family", NAMES)
def test_a_new_head_keeps_the_encoder_and_follows_the_seed(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    network.save_pretrained(tmp_path)
    heads = [FAMILIES[family].load(tmp_path, new_labels=list("abcde"), seed=seed) for seed in (0, 0, 1)]
    states = [head.state_dict() for head in heads]
    encoder = network.base_model.state_dict()
    assert all(torch.equal(value, heads[2].base_model.state_dict()[name]) for name, value in encoder.items())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert logits(heads[0]).shape == (3, 5)


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    encoder = tiny_network("bert").base_model
    assert isinstance(encoder, PreTrainedModel)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="lacks some of its weights"):
        FAMILIES["bert"].load(tmp_path)
