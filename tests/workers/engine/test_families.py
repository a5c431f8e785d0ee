"""Sizes, configs and saved forms of every family."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.workers.engine.tiny import FAMILIES, auto_class, logits, task_of, tiny_inputs, tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.families import FAMILIES as KNOWN
from workers.engine.families import family_in, family_of
from workers.engine.families.loading import load_network, load_with_new_head
from workers.engine.families.sizes import head_width_of, is_stock, structure_of
from workers.engine.structures import STRUCTURES

CLASSIFIERS = [family for family in FAMILIES if auto_class(family) == "AutoModelForSequenceClassification"]
LAYERED = [family for family in FAMILIES if not KNOWN[family].shares_layers]


def cut_evenly(network: PreTrainedModel, name: str) -> None:
    """Drops every third unit, or the first of two."""
    groups = STRUCTURES[name].groups(network)
    STRUCTURES[name].cut(network, [torch.arange(group.units) % 3 > 0 for group in groups])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_network_is_stock_and_has_the_sizes_of_its_config(family: str) -> None:
    network = tiny_network(family)
    sizes = structure_of(network)
    assert is_stock(network)
    assert not is_stock(tiny_network(family, uneven=True))
    assert {"layers": 2, "hidden_size": 32, "vocabulary": 120}.items() <= sizes.items()
    assert (sizes["attention_heads"], sizes["ffn_width"]) == ([4, 4], [48, 48])
    assert {head_width_of(side) for side in KNOWN[family].sides(network)} == {8}
    assert ("decoder_layers" in sizes) == (len(KNOWN[family].stacks) == 2)
    assert family_of(network) is KNOWN[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_is_what_the_network_takes(family: str) -> None:
    network = tiny_network(family)
    found = logits(network, KNOWN[family].example(network))
    assert found.shape[0] == 2
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("family", LAYERED)
def test_a_family_survives_cut_save_load_in_stock_form(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    cut_evenly(network, "ffn_neurons")
    cut_evenly(network, "layers")
    assert is_stock(network)
    assert (structure_of(network)["ffn_width"], structure_of(network)["layers"]) == ([32], 1)
    indices = {getattr(module, "layer_idx", None) for module in network.modules()}
    assert indices <= {None, 0}
    EXPORTERS["huggingface"].export(network, tmp_path, tmp_path, task_of(family))
    loaded = load_network(tmp_path, auto_class(family)).eval()
    assert family_in(tmp_path) is KNOWN[family]
    assert structure_of(loaded) == structure_of(network)
    inputs = tiny_inputs(network)
    assert torch.allclose(logits(loaded, inputs), logits(network, inputs), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_survives_cut_save_load_in_our_form_twice(family: str, tmp_path: Path) -> None:
    network = tiny_network(family, uneven=True)
    inputs = tiny_inputs(network)
    for folder in (tmp_path / "one", tmp_path / "two"):
        EXPORTERS["huggingface_custom"].export(network, folder, tmp_path, task_of(family))
        loaded = load_network(folder, auto_class(family)).eval()
        assert structure_of(loaded) == structure_of(network)
        assert torch.allclose(logits(loaded, inputs), logits(network, inputs), atol=1e-5)
        network = loaded
    cut_evenly(network, "ffn_neurons")
    assert structure_of(network)["ffn_width"][0] == 13
    assert bool(logits(network, inputs).isfinite().all())


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_new_head_keeps_the_encoder_and_follows_the_seed(family: str, uneven: bool, tmp_path: Path) -> None:
    network = tiny_network(family, uneven=uneven)
    EXPORTERS["huggingface_custom" if uneven else "huggingface"].export(network, tmp_path, tmp_path, task_of(family))
    heads = [
        load_with_new_head(tmp_path, auto_class(family), labels=list("abcde"), problem_type=None, seed=seed).eval()
        for seed in (0, 0, 1)
    ]
    states = [head.state_dict() for head in heads]
    encoder = network.base_model.state_dict()
    assert all(torch.equal(value, heads[2].base_model.state_dict()[name]) for name, value in encoder.items())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert logits(heads[0], tiny_inputs(network)).shape == (3, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_fits_is_kept(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    network.save_pretrained(tmp_path)
    loaded = load_with_new_head(tmp_path, auto_class(family), labels=None, problem_type=None, seed=0).eval()
    inputs = tiny_inputs(network)
    assert torch.allclose(logits(loaded, inputs), logits(network, inputs), atol=1e-5)


@pytest.mark.parametrize("form", ["huggingface", "huggingface_custom"])
def test_what_is_built_frozen_stays_frozen(form: str, tmp_path: Path) -> None:
    EXPORTERS[form].export(tiny_network("marian"), tmp_path / "saved", tmp_path, task_of("marian"))
    network = load_network(tmp_path / "saved", auto_class("marian"))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")}


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    encoder = tiny_network("bert").base_model
    assert isinstance(encoder, PreTrainedModel)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="lacks some of its weights"):
        load_network(tmp_path, auto_class("bert"))


def test_an_unknown_kind_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "reformer"}')
    with pytest.raises(EngineError, match="knows only") as caught:
        family_in(tmp_path)
    assert (caught.value.code, caught.value.blame) == ("MODEL_UNUSABLE", "user")
