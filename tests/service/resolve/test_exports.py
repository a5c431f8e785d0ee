"""A stock export is promised only where a stock config can express what the cuts leave."""

from typing import Any

import pytest

from service.catalog import FAMILIES
from service.errors import Invalid
from service.tables import Model
from tests.service.resolve.orders import ATTENTIONS, FFNS, HEADS, HIDDEN, LAYERS, NEURONS, VOCABULARY, WEIGHTS, resolved
from tests.service.samples import a_dataset, a_model_of

CUTS = (HEADS, NEURONS, LAYERS, ATTENTIONS, FFNS, HIDDEN, VOCABULARY, WEIGHTS)
PENALTY = {"kind": "regularization", "threshold": 0.01}


def _is_refused(model: Model, *cuts: dict[str, Any]) -> bool:
    """Whether the stock export is; a custom one never is."""
    dataset = a_dataset(task=model.task, labels=None)
    assert resolved(model, dataset, cuts=list(cuts), exports=["huggingface_custom", "onnx", "onnx_int8"])
    try:
        resolved(model, dataset, cuts=list(cuts), exports=["huggingface"])
    except Invalid as error:
        assert (error.code, [fault.pointer for fault in error.errors]) == ("EXPORT_NOT_EXPRESSIBLE", ["/exports/0"])
        assert f"/pruning/cuts/{len(cuts) - 1}" in error.detail
        return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_each_structure_is_as_the_catalog_says(family: str) -> None:
    known = FAMILIES[family]
    for cut in CUTS:
        if cut["structure"] in known.structures:
            expressible = cut["structure"] in known.stock_structures
            assert _is_refused(a_model_of(family), cut) != expressible, cut


@pytest.mark.parametrize("family", ["t5", "qwen2", "marian"])
def test_sizes_that_differ_from_layer_to_layer_are_not_stock(family: str) -> None:
    assert _is_refused(a_model_of(family), {**NEURONS, "scope": "global"})
    assert _is_refused(a_model_of(family), {"structure": "ffn_neurons", "criterion": PENALTY})
    assert not _is_refused(a_model_of(family), {**LAYERS, "scope": "global"})


def test_marian_cuts_its_stacks_apart() -> None:
    model = a_model_of("marian")
    assert not _is_refused(model, {**NEURONS, "stack": "encoder"}, {**LAYERS, "stack": "decoder"})


def test_t5_has_one_size_for_both_stacks() -> None:
    model = a_model_of("t5")
    for cut in (NEURONS, HEADS):
        encoder, decoder = {**cut, "stack": "encoder"}, {**cut, "stack": "decoder"}
        assert _is_refused(model, encoder)
        assert _is_refused(model, encoder, {**decoder, "ratio": 0.25})
        assert not _is_refused(model, encoder, decoder)
    assert not _is_refused(model, {**LAYERS, "stack": "encoder"})


def test_llama_keeps_heads_that_divide_its_hidden_size() -> None:
    """A stock config of Llama refuses other numbers of heads, although its head width is explicit."""
    sizes = {
        **a_model_of("llama").structure,
        "hidden_size": 48,
        "attention_heads": [12] * 4,
        "key_value_heads": [6] * 4,
    }
    model = a_model_of("llama", structure=sizes)
    assert not _is_refused(model, HEADS)
    assert _is_refused(model, {**HEADS, "ratio": 1 / 6})
    assert not _is_refused(model, {**HEADS, "ratio": 1 / 6}, {**HIDDEN, "ratio": 1 / 6})
    assert _is_refused(model, {**HIDDEN, "ratio": 0.1})
    assert not _is_refused(a_model_of("qwen3", structure=sizes), {**HEADS, "ratio": 1 / 6})
