"""Contracts over whole registries: every family with every structure and every export, and the service's own lists."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from service import catalog
from service.specs import CRITERIA_OF, ExportName, StructureName, TaskName
from tests.workers.engine.tiny import PAIRS, halves, logits, task_of, tiny_inputs, tiny_network
from workers.engine.criteria import CRITERIA
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES
from workers.engine.families.sizes import is_stock
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated
from workers.engine.tasks import TASKS
from workers.engine.verification import comparison, run_comparisons

NARROW = ("attention_heads", "ffn_neurons")
DROPPED = ("attention_layers", "ffn_layers")
"""The cuts that every family is exported to ONNX with, the last two where its layers have weights of their own."""
Reports = dict[tuple[str, str, str], dict[str, Any]]
"""By family, what was cut, and name of the export."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def cut(network: PreTrainedModel, structure: str) -> None:
    STRUCTURES[structure].cut(network, halves(network, structure))


@pytest.mark.parametrize(("family", "name"), [pair for pair in PAIRS if pair[1] != "hidden_size"])
def test_closing_gates_equals_cutting(family: str, name: str) -> None:
    network, structure = tiny_network(family, uneven=name == "ffn_neurons"), STRUCTURES[name]
    inputs = tiny_inputs(network)
    keep, whole = halves(network, name), logits(network, inputs)
    with gated(network, structure, [Gate(mask.float(), learn=False) for mask in keep]):
        masked = logits(network, inputs)
    assert not torch.allclose(masked, whole, atol=1e-3)
    assert torch.equal(logits(network, inputs), whole), "the gates must be gone after the block"
    structure.cut(network, keep)
    assert torch.allclose(logits(network, inputs), masked, atol=1e-5)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What one fresh process says about every pair in Hugging Face form and every family in ONNX form."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("contracts")
    wanted: list[tuple[str, tuple[str, ...]]] = [(family, (structure,)) for family, structure in PAIRS]
    wanted += [(family, _cuts_in_onnx(family)) for family in FAMILIES]
    comparisons, keys = [], []
    for number, (family, structures) in enumerate(wanted):
        found = exported(family, structures, work / str(number))
        comparisons.append(found)
        keys += [(family, "+".join(structures), artifact["name"]) for artifact in found["artifacts"]]
    answer = run_comparisons(comparisons, work, threads=1, timeout=300)
    return dict(zip(keys, answer, strict=True))


def _cuts_in_onnx(family: str) -> tuple[str, ...]:
    return NARROW if FAMILIES[family].shares_layers else NARROW + DROPPED


def exported(family: str, structures: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Cuts and exports one network; what the fresh process needs to check it."""
    network, task = tiny_network(family), task_of(family)
    for structure in structures:
        cut(network, structure)
    names = ["huggingface" if is_stock(network) else "huggingface_custom"]
    names += ["onnx", "onnx_int8"] if len(structures) > 1 else []
    artifacts = [(name, folder / EXPORTERS[name].folder) for name in names]
    for name, target in artifacts:
        EXPORTERS[name].export(network, target, folder, task)
    return comparison(network, artifacts, task, folder, seed=0)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_what_is_cut_loads_again_in_a_fresh_process(family: str, name: str, reports: Reports) -> None:
    found = [report for (model, structure, _), report in reports.items() if (model, structure) == (family, name)]
    assert [report["failure"] for report in found] == [None]
    assert found[0]["error"] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("export", ["onnx", "onnx_int8"])
def test_every_family_runs_in_onnx(family: str, export: str, reports: Reports) -> None:
    report = reports[family, "+".join(_cuts_in_onnx(family)), export]
    assert report["failure"] is None
    assert report["error"] < 1e-5 if export == "onnx" else report["error"] > 1e-4, "int8 rounds, fp32 does not"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_structure_that_keeps_a_familys_form_is_known_to_the_catalog(family: str) -> None:
    known = catalog.FAMILIES[family]
    for name in known.stock_structures:
        if name in STRUCTURES:
            network = tiny_network(family)
            masks = [torch.arange(group.units) % 2 == 1 for group in STRUCTURES[name].groups(network)]
            STRUCTURES[name].cut(network, masks)
            assert is_stock(network), name


def test_registries_agree_with_the_spec_and_the_catalog() -> None:
    assert set(STRUCTURES) | {"vocabulary"} == set(get_args(StructureName)) == set(CRITERIA_OF)
    assert set(CRITERIA) == set().union(*CRITERIA_OF.values())
    assert set(EXPORTERS) == set(get_args(ExportName))
    assert set(TASKS) == set(get_args(TaskName))
    assert set(FAMILIES) == set(catalog.FAMILIES)
    for family in catalog.FAMILIES.values():
        assert set(family.structures) <= set(STRUCTURES) | {"vocabulary"}
        assert set(family.exports) <= set(EXPORTERS)
