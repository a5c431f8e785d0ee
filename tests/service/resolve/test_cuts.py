"""A family loses what it can lose, and every cut takes something."""

from typing import Any

import pytest
import torch

from service.catalog import FAMILIES
from service.resolve.cuts import removed
from service.specs import CRITERIA_OF
from tests.service.resolve.orders import (
    ATTENTIONS,
    FFNS,
    HEADS,
    HIDDEN,
    LAYERS,
    NEURONS,
    VOCABULARY,
    WEIGHTS,
    faults,
    refused,
    resolved,
)
from tests.service.samples import a_dataset, a_model, a_model_of
from workers.engine.allocation import allocate

TARGET = {"target": {"metric": "parameters", "ratio": 0.5}}
ONE_OF_EACH = {cut["structure"]: cut for cut in (HEADS, NEURONS, LAYERS, ATTENTIONS, FFNS, HIDDEN, VOCABULARY, WEIGHTS)}


def test_there_is_a_cut_of_every_structure_here() -> None:
    assert set(ONE_OF_EACH) == set(CRITERIA_OF)


@pytest.mark.parametrize("structure", ONE_OF_EACH)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loses_what_its_entry_says(family: str, structure: str) -> None:
    model = a_model_of(family)
    dataset = a_dataset(task=model.task, labels=None)
    if structure in FAMILIES[family].structures:
        assert resolved(model, dataset, cuts=[ONE_OF_EACH[structure]], exports=["onnx"])
    else:
        error = refused(model, dataset, cuts=[ONE_OF_EACH[structure]], exports=["onnx"])
        assert error.code == "STRUCTURE_NOT_SUPPORTED"
        assert FAMILIES[family].reasons[structure] in error.detail


def test_albert_says_why_it_keeps_its_layers() -> None:
    error = refused(a_model_of("albert"), a_dataset(), cuts=[LAYERS])
    assert next(fault.pointer for fault in error.errors) == "/pruning/cuts/0/structure"
    assert "share the same weights" in error.detail


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [HEADS, NEURONS, WEIGHTS], ids=lambda cut: str(cut["structure"]))
def test_only_two_stacks_can_be_told_apart(family: str, cut: dict[str, Any]) -> None:
    model = a_model_of(family)
    cuts = [{**cut, "stack": "decoder"}]
    if FAMILIES[family].stacks:
        assert resolved(model, cuts=cuts, exports=["onnx"])["pruning"]["cuts"][0]["stack"] == "decoder"
    else:
        assert faults(model, cuts=cuts, exports=["onnx"]) == ("STACK_NOT_SUPPORTED", ["/pruning/cuts/0/stack"])


@pytest.mark.parametrize("cut", [HIDDEN, VOCABULARY])
def test_what_both_stacks_have_in_common_has_no_stack(cut: dict[str, Any]) -> None:
    model = a_model_of("t5")
    code, pointers = faults(model, a_dataset(task="translation", labels=None), cuts=[{**cut, "stack": "encoder"}])
    assert (code, pointers) == ("STACK_NOT_SUPPORTED", ["/pruning/cuts/0/stack"])


@pytest.mark.parametrize(
    "cuts",
    [
        [NEURONS, NEURONS],
        [NEURONS, {**NEURONS, "ratio": 0.4}],
        [NEURONS, {**NEURONS, "ratio": 0.501}],
        [NEURONS, {**NEURONS, "criterion": {"kind": "magnitude"}}],
        [WEIGHTS, {**WEIGHTS, "ratio": 0.3}],
        [LAYERS, LAYERS],
        [ATTENTIONS, ATTENTIONS],
        [HIDDEN, HIDDEN],
    ],
)
def test_a_second_cut_must_take_more(cuts: list[dict[str, Any]]) -> None:
    error = refused(a_model(), cuts=cuts, exports=["onnx"])
    assert (error.code, error.errors[0].pointer) == ("CUT_REMOVES_NOTHING", "/pruning/cuts/1/ratio")
    assert "earlier cut" in error.detail


@pytest.mark.parametrize(
    "cuts",
    [
        [NEURONS, {**NEURONS, "ratio": 0.6}],
        [WEIGHTS, {**WEIGHTS, "pattern": "2:4", "ratio": None}],
        [{**NEURONS, "stack": "encoder"}, {**NEURONS, "stack": "decoder"}],
        [{**NEURONS, "stack": "encoder"}, NEURONS],
        [LAYERS, ATTENTIONS, FFNS],
        [{**FFNS, "stack": "encoder"}, {**FFNS, "stack": "decoder"}],
    ],
)
def test_a_second_cut_may_take_more_or_elsewhere(cuts: list[dict[str, Any]]) -> None:
    assert resolved(a_model_of("marian"), cuts=cuts, exports=["onnx"])


def test_layers_that_lost_a_part_are_not_counted_among_those_that_can() -> None:
    sizes = {**a_model_of("llama").structure, "attention_heads": [0, 4, 0, 0], "key_value_heads": [0, 2, 0, 0]}
    model = a_model_of("llama", structure=sizes, facts={"uniform": False})
    assert faults(model, cuts=[ATTENTIONS], exports=["onnx"]) == ("CUT_REMOVES_NOTHING", ["/pruning/cuts/0/ratio"])
    for cut in (HEADS, FFNS, {**HEADS, "scope": "global"}):
        assert resolved(model, cuts=[cut], exports=["onnx"])
    assert faults(model, cuts=[{**HEADS, "ratio": 0.2}], exports=["onnx"])[0] == "CUT_REMOVES_NOTHING"


def test_both_stacks_are_ranked_together() -> None:
    """Of two layers and one a sixth rounds to none in either stack, but to one of all three."""
    model = a_model_of("bart", structure=a_model_of("bart").structure | {"layers": 2, "decoder_layers": 1})
    sixth = {**LAYERS, "ratio": 1 / 6}
    assert faults(model, cuts=[sixth]) == ("CUT_REMOVES_NOTHING", ["/pruning/cuts/0/ratio"])
    assert resolved(model, cuts=[{**sixth, "scope": "global"}])
    twice = [{**sixth, "scope": "global"}] * 2
    assert faults(model, cuts=twice) == ("CUT_REMOVES_NOTHING", ["/pruning/cuts/1/ratio"])


@pytest.mark.parametrize(("size", "share"), [(50, 0.29), (10, 0.35), (12, 0.125), (7, 0.1)])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_shares_are_rounded_as_the_engine_rounds_them(size: int, share: float, scope: str) -> None:
    (kept,) = allocate([torch.rand(size)], [size], share, ranked=scope == "global", comparable=True)
    assert removed([size], share, scope) == int((~kept).sum())


def test_embeddings_stay_as_wide_as_those_they_are_compared_with() -> None:
    dataset = a_dataset(task="sentence-embedding", labels={"pairs": True, "scores": True})
    cuts = [NEURONS, HIDDEN]
    error = refused(a_model(), dataset, task="sentence-embedding", cuts=cuts, exports=["huggingface_custom"])
    assert (error.code, error.errors[0].pointer) == ("STRUCTURE_NOT_SUPPORTED", "/pruning/cuts/1/structure")
    assert "narrower" in error.detail
    assert resolved(a_model(), task="sentence-embedding", cuts=cuts, exports=["huggingface_custom"])


def test_the_vocabulary_is_cut_once() -> None:
    code, pointers = faults(a_model(), a_dataset(), cuts=[VOCABULARY, VOCABULARY])
    assert (code, pointers) == ("CUT_REMOVES_NOTHING", ["/pruning/cuts/1"])


def test_heads_go_with_those_they_share_keys_with() -> None:
    """Of four heads, two to a key, a quarter is one head and so no whole group: half a group rounds to one."""
    model = a_model_of("llama")
    assert resolved(model, cuts=[{**HEADS, "ratio": 0.25}])
    assert faults(model, cuts=[{**HEADS, "ratio": 0.2}])[0] == "CUT_REMOVES_NOTHING"


def test_a_threshold_says_itself_what_goes() -> None:
    penalty = {"kind": "regularization", "threshold": 0.01}
    cuts = [{"structure": "ffn_neurons", "criterion": penalty}] * 2
    assert resolved(a_model(), a_dataset(), cuts=cuts, exports=["onnx"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_takes_any_family_with_heads_and_neurons(family: str) -> None:
    model = a_model_of(family)
    dataset = a_dataset(task=model.task, labels=None)
    assert resolved(model, dataset, pruning=TARGET)["exports"] == ["huggingface"]


UNKNOWN = a_model_of("my-bert", task=None)


@pytest.mark.parametrize("pattern", [None, "unstructured", "2:4", "4:8", "block"])
@pytest.mark.parametrize("task", ["text-classification", "translation", "causal-lm"])
def test_an_unknown_family_loses_single_weights(pattern: str | None, task: str) -> None:
    cut = {**WEIGHTS, "pattern": pattern}
    made = resolved(UNKNOWN, cuts=[cut], task=task, acceptance=[{"metric": "parameters", "max_ratio": 1.0}])
    assert (made["benchmark"], made["max_length"]) == (None, None)


@pytest.mark.parametrize(
    ("code", "pointer", "changes"),
    [
        ("STRUCTURE_NOT_SUPPORTED", "/pruning/cuts/0/structure", {"cuts": [NEURONS]}),
        ("STRUCTURE_NOT_SUPPORTED", "/pruning/cuts/0/structure", {"cuts": [LAYERS]}),
        (
            "CRITERION_NOT_SUPPORTED",
            "/pruning/cuts/0/criterion",
            {"cuts": [{**WEIGHTS, "criterion": {"kind": "random"}}]},
        ),
        (
            "CRITERION_NOT_SUPPORTED",
            "/pruning/cuts/0/criterion",
            {"cuts": [{**WEIGHTS, "criterion": {"kind": "taylor"}}]},
        ),
        ("STACK_NOT_SUPPORTED", "/pruning/cuts/0/stack", {"cuts": [{**WEIGHTS, "stack": "encoder"}]}),
        ("EXPORT_NOT_SUPPORTED", "/exports/0", {"cuts": [WEIGHTS], "exports": ["onnx"]}),
        ("FAMILY_NOT_RUN", "/dataset_id", {"cuts": [WEIGHTS], "dataset_id": "ds_" + "0" * 26}),
        ("FAMILY_NOT_RUN", "/baseline", {"cuts": [WEIGHTS], "baseline": {"epochs": 1}}),
        ("FAMILY_NOT_RUN", "/finetuning", {"cuts": [WEIGHTS], "finetuning": {"epochs": 1}}),
        ("FAMILY_NOT_RUN", "/pruning/target", {"pruning": TARGET}),
        ("FAMILY_NOT_RUN", "/pruning/schedule", {"pruning": {"cuts": [WEIGHTS], "schedule": {"kind": "gradual"}}}),
        ("FAMILY_NOT_RUN", "/benchmark", {"cuts": [WEIGHTS], "benchmark": {}}),
        (
            "FAMILY_NOT_RUN",
            "/acceptance/0",
            {"cuts": [WEIGHTS], "acceptance": [{"metric": "accuracy", "min_value": 0.5}]},
        ),
    ],
)
def test_an_unknown_family_loses_nothing_else(code: str, pointer: str, changes: dict[str, Any]) -> None:
    assert faults(UNKNOWN, **changes) == (code, [pointer])
