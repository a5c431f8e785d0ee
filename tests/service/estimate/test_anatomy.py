"""Sizes tell of parameters and FLOPs what real networks have."""

from typing import Any

import pytest

from service.estimate.anatomy import Anatomy, after, anatomy_of
from service.resolve.order import Order
from service.tables import Model
from tests.models import tiny_network
from tests.service.resolve.orders import a_job_spec
from tests.service.samples import a_model, a_model_of
from workers.engine.benchmark import count_flops
from workers.engine.evaluation import parameter_counts
from workers.engine.families.sizes import structure_of

LENGTH = 16
ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "marian": "MarianMTModel",
    "t5": "T5ForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def measured(family: str, **sizes: Any) -> tuple[Model, int, int]:
    """The row of a real network, its parameters and the FLOPs of one sequence."""
    wide = {"hidden_size": 128, "intermediate_size": 192} if family == "bert" else {}  # so that biases are few
    network = tiny_network(family, ARCHITECTURES[family], **{**wide, **sizes})
    counted = parameter_counts(network)["parameters"]
    model = a_model_of(family, structure=structure_of(network), parameters=counted)
    return model, counted, count_flops(network, LENGTH)


def found(model: Model) -> Anatomy:
    """The anatomy of a model that has one."""
    anatomy = anatomy_of(model)
    assert anatomy is not None
    return anatomy


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_flops_are_those_that_are_counted(family: str) -> None:
    model, parameters, flops = measured(family)
    anatomy = found(model)
    assert anatomy.parameters == pytest.approx(parameters)
    assert anatomy.flops(LENGTH) == pytest.approx(flops, rel=0.03)


def left(model: Model, **changes: Any) -> tuple[Anatomy, Anatomy]:
    """The least and the most that an order leaves."""
    return after(Order(a_job_spec(model, **changes), model, None, None), found(model))


def cut(structure: str, ratio: float = 0.5, **changes: Any) -> dict[str, Any]:
    """One cut by norm."""
    return {"structure": structure, "ratio": ratio, "criterion": {"kind": "magnitude"}, **changes}


@pytest.mark.parametrize(
    ("cuts", "sizes"),
    [
        ([cut("ffn_neurons")], {"intermediate_size": 96}),
        ([cut("ffn_neurons", scope="global")], {"intermediate_size": 96}),
        ([cut("layers")], {"num_hidden_layers": 1}),
        ([cut("ffn_neurons"), cut("layers")], {"num_hidden_layers": 1, "intermediate_size": 96}),
        ([cut("ffn_neurons", 0.25), cut("ffn_neurons")], {"intermediate_size": 96}),
        ([cut("weights")], {}),
    ],
)
def test_a_cut_leaves_what_a_network_of_those_sizes_has(cuts: list[dict[str, Any]], sizes: dict[str, int]) -> None:
    model = measured("bert")[0]
    least, most = left(model, cuts=cuts)
    _, parameters, flops = measured("bert", **sizes)
    assert least == most
    assert most.parameters == pytest.approx(parameters, rel=0.02)
    assert most.flops(LENGTH) == pytest.approx(flops, rel=0.02)


def test_heads_that_share_keys_go_together() -> None:
    model, _, _ = measured("llama")
    narrow, parameters, flops = measured("llama", num_attention_heads=2, num_key_value_heads=1)
    assert narrow.structure["key_value_heads"] == [1, 1]
    _, most = left(model, cuts=[cut("attention_heads")])
    assert most.parameters == pytest.approx(parameters, rel=0.02)
    assert most.flops(LENGTH) == pytest.approx(flops, rel=0.02)


def test_a_stack_is_cut_alone() -> None:
    model, _, _ = measured("marian")
    one, _ = left(model, cuts=[cut("ffn_neurons", stack="decoder")])
    both, _ = left(model, cuts=[cut("ffn_neurons")])
    assert model.parameters - one.parameters == 20 * 2 * 32
    assert one.parameters - both.parameters == 2 * 24 * 2 * 32


def test_the_width_of_heads_that_were_cut_is_found() -> None:
    model, parameters, flops = measured("qwen3", num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    model.job_id = "job_1"
    assert found(model).stacks[0].head_width == 16
    assert found(model).flops(LENGTH) == pytest.approx(flops, rel=0.03)
    assert found(model).parameters == pytest.approx(parameters)


def test_what_data_decide_is_a_range() -> None:
    model = measured("bert")[0]
    least, most = left(model, cuts=[{"structure": "vocabulary"}])
    assert most.parameters == model.parameters
    assert least.parameters == model.parameters - 120 * 128


def test_sizes_that_do_not_explain_the_parameters_are_not_used() -> None:
    assert anatomy_of(a_model(parameters=10**9)) is None
    assert anatomy_of(a_model_of("other", structure={"layers": None, "hidden_size": None})) is None
