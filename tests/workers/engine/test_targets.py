"""Targets: the budget is met and used, the cut is worth it, and what cannot be reached is refused before any harm."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from service.specs import Target, Training
from tests.models import tiny_dataset, tiny_model
from tests.models import tiny_network as network_of_class
from tests.workers.engine.tiny import FAMILIES, logits, tiny_inputs, tiny_network
from tests.workers.engine.tiny_tasks import tokenizer_in
from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.recovery import Course, train
from workers.engine.replica import replica
from workers.engine.reporter import Reporter
from workers.engine.structures import STRUCTURES
from workers.engine.targets import STRUCTURES_CUT, Bill, prune_units
from workers.engine.tasks import TASKS, Settings, Task

TOKENS = 16


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Task]:
    """A tiny classifier that has learnt its task."""
    folder = tmp_path_factory.mktemp("trained")
    model, data = tiny_model(folder / "model"), tiny_dataset(folder / "data", train=256, validation=64, test=256)
    network = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager")
    task = TASKS["text-classification"](data, model, network, Settings(TOKENS))
    recipe = Training(epochs=8, learning_rate=3e-3, batch_size=16)
    with (folder / "lines").open("w") as lines:
        train(network, task, Course("baseline", recipe, recipe.epochs, 0), Reporter(lines))
    return network, task


def fresh(trained: tuple[PreTrainedModel, Task]) -> PreTrainedModel:
    return replica(trained[0])


def target(metric: str, ratio: float) -> Target:
    return Target.model_validate({"metric": metric, "ratio": ratio, "samples": 128})


def widths(network: PreTrainedModel, name: str) -> list[int]:
    return [group.units for group in STRUCTURES[name].groups(network)]


@pytest.mark.parametrize("metric", ["flops", "parameters"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.8])
def test_the_budget_is_met_and_used_to_the_last_neuron(
    trained: tuple[PreTrainedModel, Task], metric: str, ratio: float
) -> None:
    network, bill = fresh(trained), Bill(metric, TOKENS)
    whole = bill.total(network)
    neuron = bill.unit("ffn_neurons", STRUCTURES["ffn_neurons"].groups(network)[0])
    before = {name: sum(widths(network, name)) for name in STRUCTURES_CUT}
    done = prune_units(network, trained[1], target(metric, ratio), ratio * whole, TOKENS)
    head = bill.unit("attention_heads", STRUCTURES["attention_heads"].groups(network)[0])
    spent = bill.total(network)
    assert ratio * whole - max(head, neuron) < spent <= ratio * whole
    assert {name: (before[name] - sum(widths(network, name)), before[name]) for name in STRUCTURES_CUT} == done
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_cut_is_the_same_every_time_and_better_than_chance(trained: tuple[PreTrainedModel, Task]) -> None:
    task = trained[1]
    twins = [fresh(trained), fresh(trained)]
    for network in twins:
        prune_units(network, task, target("flops", 0.35), 0.35 * Bill("flops", TOKENS).total(network), TOKENS)
    states = [network.state_dict() for network in twins]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    chosen = task.evaluate(twins[0], "test").loss
    chance = []
    for seed in range(3):
        network, generator = fresh(trained), torch.Generator().manual_seed(seed)
        for name in STRUCTURES_CUT:
            keep = [torch.randperm(units, generator=generator) < units * 0.35 for units in widths(network, name)]
            STRUCTURES[name].cut(network, keep)
        chance.append(task.evaluate(network, "test").loss)
    assert chosen < min(chance)


def test_a_uniform_cut_is_the_same_in_all_layers_and_can_leave_heads_alone(
    trained: tuple[PreTrainedModel, Task],
) -> None:
    network = fresh(trained)
    budget = 0.8 * Bill("flops", TOKENS).total(network)
    heads = widths(network, "attention_heads")
    done = prune_units(
        network, trained[1], target("flops", 0.8), budget, TOKENS, uniform=True, structures=("ffn_neurons",)
    )
    assert widths(network, "attention_heads") == heads
    assert len(set(widths(network, "ffn_neurons"))) == 1
    assert list(done) == ["ffn_neurons"]
    assert Bill("flops", TOKENS).total(network) <= budget


@pytest.mark.parametrize("ratio", [0.85, 0.9, 0.95])
def test_a_uniform_cut_of_llama_leaves_heads_that_its_config_may_name(ratio: float, tmp_path: Path) -> None:
    """Of twelve heads for 48 features two do nothing, but the ten others do not divide the features."""
    network = network_of_class(
        "llama", "LlamaForCausalLM", hidden_size=48, num_attention_heads=12, num_key_value_heads=6, head_dim=4
    )
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[:, 40:] = 0
    task = TASKS["causal-lm"](tiny_dataset(tmp_path / "data"), tokenizer_in(tmp_path), network, Settings(TOKENS))
    budget = ratio * Bill("parameters", TOKENS).total(network)
    prune_units(network, task, target("parameters", ratio), budget, TOKENS, uniform=True)
    assert Bill("parameters", TOKENS).total(network) <= budget
    EXPORTERS["huggingface"].export(network, tmp_path / "out", tmp_path, type(task))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    inputs = tiny_inputs(network)
    assert torch.allclose(logits(again, inputs), logits(network, inputs), atol=1e-5)


def test_what_is_out_of_reach_is_refused_before_anything_is_cut(trained: tuple[PreTrainedModel, Task]) -> None:
    network = fresh(trained)
    before = {name: widths(network, name) for name in STRUCTURES_CUT}
    with pytest.raises(EngineError) as refused:
        prune_units(network, trained[1], target("flops", 0.01), 0.01 * Bill("flops", TOKENS).total(network), TOKENS)
    assert (refused.value.code, refused.value.blame) == ("TARGET_OUT_OF_REACH", "user")
    assert {name: widths(network, name) for name in STRUCTURES_CUT} == before


def test_broken_weights_are_refused(trained: tuple[PreTrainedModel, Task]) -> None:
    network = fresh(trained)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(EngineError) as refused:
        prune_units(network, trained[1], target("flops", 0.5), 0.5 * Bill("flops", TOKENS).total(network), TOKENS)
    assert refused.value.code == "NOT_FINITE"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_price_of_units_is_what_their_removal_saves(family: str) -> None:
    network, bill = tiny_network(family), Bill("parameters", TOKENS)
    for name in STRUCTURES_CUT:
        structure = STRUCTURES[name]
        groups = structure.groups(network)
        before = sum(parameter.numel() for parameter in network.parameters())
        price = bill.unit(name, groups[0])
        keep = [torch.ones(group.units, dtype=torch.bool) for group in groups]
        keep[0][0] = False
        structure.cut(network, keep)
        assert before - sum(parameter.numel() for parameter in network.parameters()) == price


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("name", STRUCTURES_CUT)
def test_multiply_adds_are_those_that_torch_counts(family: str, name: str) -> None:
    network = tiny_network(family)
    structure = STRUCTURES[name]
    groups = structure.groups(network)
    price = Bill("flops", TOKENS).unit(name, groups[0])
    counted = []
    for cut in (False, True):
        if cut:
            keep = [torch.ones(group.units, dtype=torch.bool) for group in groups]
            keep[0][0] = False
            structure.cut(network, keep)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            network(input_ids=torch.ones(1, TOKENS, dtype=torch.long))
        counted.append(counter.get_total_flops())
    assert counted[0] - counted[1] == 2 * TOKENS * price
