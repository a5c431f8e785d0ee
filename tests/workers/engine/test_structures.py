"""Contract of every structure with every family: a cut equals its mask, and survives saving."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.workers.engine.tiny import FAMILIES as NAMES
from tests.workers.engine.tiny import logits, task_of, tiny_inputs, tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.families.loading import load_network
from workers.engine.families.sizes import is_stock, structure_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated

PAIRS = [
    (family, structure) for family in NAMES for structure in STRUCTURES if (family, structure) != ("albert", "layers")
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def halves(network: PreTrainedModel, structure: str) -> list[Tensor]:
    """Random masks that keep every group's first unit and never all; of heads and layers the same number everywhere."""
    chance = torch.Generator().manual_seed(2)
    masks = []
    for group in STRUCTURES[structure].groups(network):
        order = torch.randperm(group.units, generator=chance)
        masks.append(torch.isin(torch.arange(group.units), order[: max(1, group.units // 2)]))
    return masks


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
