"""Contracts that every registered criterion, structure and family keeps."""

import itertools
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from service import catalog
from service.specs import CRITERIA_OF, DATA_CRITERIA, Cut, ExportName, StructureName, TaskName
from tests.models import rows, tiny_model
from tests.workers.engine.tiny import tiny_network
from workers.engine import allocation
from workers.engine.criteria import CRITERIA
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES, family_in, structure_of
from workers.engine.modeling_secateur import CLASSES, PATTERNS
from workers.engine.structures import STRUCTURES, Gate, gated
from workers.engine.surgery import Anatomy, apply_cut
from workers.engine.tasks import TASKS, Task

PAIRS = sorted((structure, kind) for structure, kinds in CRITERIA_OF.items() for kind in kinds)
INPUTS = {"input_ids": torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(1))}


def logits(network: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        answer: Tensor = network(**INPUTS).logits
    return answer


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    tiny_model(folder / "model")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(64)))
    return TASKS["text-classification"](folder / "data", folder / "model", ["LABEL_0", "LABEL_1"], 16, 0)


def cut_of(structure: str, kind: str, ratio: float = 0.5, scope: str = "uniform") -> Cut:
    return Cut.model_validate({"structure": structure, "ratio": ratio, "scope": scope, "criterion": {"kind": kind}})


def test_registries_agree_with_the_spec_and_the_catalog() -> None:
    assert set(STRUCTURES) == set(get_args(StructureName)) == set(CRITERIA_OF)
    assert set(CRITERIA) == set().union(*CRITERIA_OF.values())
    assert set(EXPORTERS) == set(get_args(ExportName))
    assert set(TASKS) == set(get_args(TaskName))
    assert set(FAMILIES) == set(catalog.FAMILIES) == set(PATTERNS) == set(CLASSES)
    for family in catalog.FAMILIES.values():
        assert set(family.structures) <= set(STRUCTURES) and set(family.exports) <= set(EXPORTERS)


@pytest.mark.parametrize(("family", "structure"), list(itertools.product(FAMILIES, STRUCTURES)))
def test_surgery_equals_the_mask(family: str, structure: str) -> None:
    network, plan = tiny_network(family), STRUCTURES[structure]
    generator = torch.Generator().manual_seed(0)
    keep = [
        allocation.best(torch.rand(group.units, generator=generator), max(1, group.units // 2))
        for group in plan.groups(network)
    ]
    before = logits(network)
    with gated(network, plan, [Gate(mask.float(), learn=False) for mask in keep]):
        masked = logits(network)
    plan.cut(network, keep)
    assert torch.allclose(logits(network), masked, atol=1e-5)
    assert not torch.allclose(before, masked, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_network_survives_saving(family: str, tmp_path: Path) -> None:
    tiny_model(tmp_path / "model", family)
    network = family_in(tmp_path / "model").load(tmp_path / "model")
    network.eval()
    for structure in ("attention_heads", "ffn_neurons", "layers"):
        plan = STRUCTURES[structure]
        plan.cut(network, [allocation.best(torch.rand(g.units), g.units // 2) for g in plan.groups(network)])
    EXPORTERS["huggingface_custom"].export(network, tmp_path / "saved", tmp_path / "model")
    again = family_in(tmp_path / "saved").load(tmp_path / "saved")
    again.eval()
    assert torch.allclose(logits(again), logits(network), atol=1e-6)
    assert structure_of(again) == structure_of(network)


@pytest.mark.parametrize(("structure", "kind"), PAIRS)
def test_a_criterion_keeps_the_ratio_and_its_word(structure: str, kind: str, task: Task) -> None:
    shapes = []
    for _ in range(2):
        network = tiny_network("bert", labels=2)
        removed = apply_cut(
            network,
            cut_of(structure, kind, scope="global"),
            0.5,
            Anatomy.of(network),
            task if kind in DATA_CRITERIA else None,
            torch.Generator().manual_seed(7),
        )
        assert removed["removed"] == removed["of"] // 2
        shapes.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert torch.equal(*shapes)


@pytest.mark.parametrize(("structure", "kind"), [pair for pair in PAIRS if pair[1] != "random"])
def test_a_criterion_finds_what_is_useless(structure: str, kind: str, task: Task) -> None:
    """Half of the units are switched off beforehand: cutting just those changes nothing, which chance would not do."""
    network = tiny_network("bert", labels=2)
    useless = _switch_off_half(network, structure)
    before = logits(network)
    cut = cut_of(structure, kind)
    apply_cut(network, cut, 0.5, Anatomy.of(network), task if kind in DATA_CRITERIA else None, torch.Generator())
    assert useless
    assert torch.allclose(logits(network), before, atol=1e-5)


def _switch_off_half(network: PreTrainedModel, structure: str) -> bool:
    with torch.no_grad():
        if structure == "layers":
            _make_identity(network)
            return True
        for group in STRUCTURES[structure].groups(network):
            for parameter, dim in group.parts:
                parameter.movedim(dim, 0).reshape(group.units, -1)[::2].zero_() if dim == 0 else None
                if dim == 1:
                    parameter.view(len(parameter), group.units, -1)[:, ::2] = 0
                elif structure == "weights":
                    parameter.view(-1)[::2] = 0
    return True


def _make_identity(network: PreTrainedModel) -> None:
    """A post-norm layer whose two blocks add nothing repeats its input once that is normalised."""
    layer = FAMILIES["bert"].layers(network)[1]
    for linear in (*layer.heads_in, layer.heads_out, layer.ffn_in, layer.ffn_out):
        linear.weight.zero_()
        linear.bias.zero_()


def test_allocation_counts() -> None:
    assert [allocation.to_keep(12, share) for share in (0.5, 0.04, 0.05, 0.99)] == [6, 12, 11, 1]
    scores = [torch.tensor([9.0, 8.0]), torch.tensor([1.0, 0.5, 0.1])]
    masks = allocation.ranked(scores, 3, comparable=True)
    assert [mask.tolist() for mask in masks] == [[True, True], [True, False, False]]
    kept = allocation.two_of_four(torch.rand(6), 6)
    assert kept[:4].sum() == 2 and kept[4:].all()
