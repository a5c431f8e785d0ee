"""Second-order scores against the errors that they stand for, and Fisher against gradients taken one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs.criteria import Fisher as FisherSpec
from service.specs.criteria import SecondOrder as SecondOrderSpec
from tests.models import tiny_network as a_network
from tests.workers.engine.tiny import FAMILIES, tiny_inputs, tiny_network
from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.fisher import fisher
from workers.engine.criteria.second_order import DAMPING, SecondOrder
from workers.engine.repair import solution, write
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, Group, gated
from workers.engine.tasks.task import forward

UNITS = {"attention_heads", "ffn_neurons"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def loss_of(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Of random classes, summed."""
    scores = forward(network, batch).logits.flatten(0, -2)
    wanted = torch.randint(0, scores.shape[-1], (len(scores),), generator=torch.Generator().manual_seed(4))
    return functional.cross_entropy(scores, wanted, reduction="sum")


def scored(network: PreTrainedModel, name: str, form: Any, spec: Any, batches: int = 3) -> list[Tensor]:
    structure = STRUCTURES[name]
    criterion: Criterion = form(spec, structure, torch.Generator())
    network.requires_grad_(criterion.needs == "gradients")
    criterion.attach(network, structure.groups(network))
    for number in range(batches):
        network.zero_grad(set_to_none=True)
        loss_of(network, inputs_of(network, number)).backward()
        criterion.advance((number + 1) / batches)
    network.requires_grad_(True)
    return criterion.scores()


def inputs_of(network: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    inputs = tiny_inputs(network)
    chance = torch.Generator().manual_seed(seed)
    inputs["input_ids"] = torch.randint(5, 120, inputs["input_ids"].shape, generator=chance)
    return inputs


def second_order(network: PreTrainedModel, name: str) -> list[Tensor]:
    return scored(network, name, SecondOrder, SecondOrderSpec(kind="second_order"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(UNITS))
def test_every_family_is_scored_and_left_as_it_was(family: str, name: str) -> None:
    network = tiny_network(family)
    scores = second_order(network, name)
    groups = STRUCTURES[name].groups(network)
    assert [len(values) for values in scores] == [group.units for group in groups]
    assert all(bool(values.isfinite().all()) and bool((values >= 0).all()) for values in scores)
    assert all(float(values.max()) > float(values.min()) for values in scores)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    again = second_order(tiny_network(family), name)
    assert all(torch.equal(values, twins) for values, twins in zip(scores, again, strict=True))


class Lonely:
    """A projection as the only group of a structure."""

    def __init__(self, projection: nn.Linear, units: int) -> None:
        self.group = Group(0, units, (), outputs=(projection,))


def removal_order(projection: nn.Linear, units: int, inputs: Tensor, pull: Tensor) -> Tensor:
    """Scores where the loss is linear in the outputs with the gradients `pull`."""
    criterion: Any = SecondOrder(SecondOrderSpec(kind="second_order"), STRUCTURES["ffn_neurons"], torch.Generator())
    criterion.attach(None, [Lonely(projection, units).group])
    projection.requires_grad_(False)
    (projection(inputs) * pull).sum().backward()
    (scores,) = criterion.scores()
    found: Tensor = scores
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_scores_add_up_to_the_error_of_the_best_fit_without_those_units(size: int) -> None:
    chance = torch.Generator().manual_seed(0)
    units, outputs, rows = 6, 5, 400
    inputs = torch.randn(rows, units * size, generator=chance) @ torch.randn(
        units * size, units * size, generator=chance
    )
    projection = nn.Linear(units * size, outputs, bias=False)
    # Gradients of one length, so that all tokens weigh the same and the covariance is the plain one.
    pull = functional.normalize(torch.randn(rows, outputs, generator=chance), dim=1)
    scores = removal_order(projection, units, inputs, pull)
    order = scores.argsort()
    assert bool((scores[order].diff() >= 0).all())
    gradients = pull.T @ pull / rows
    for gone in range(1, units):
        keep = torch.ones(units, dtype=torch.bool)
        keep[order[:gone]] = False
        error = best_fit_error(projection, keep, inputs, gradients)
        total = float(scores[order[:gone]].sum())
        assert error == pytest.approx(total, rel=0.05)


def best_fit_error(projection: nn.Linear, keep: Tensor, inputs: Tensor, gradients: Tensor) -> float:
    """tr(G D H Dᵀ) of the change D that least squares makes."""
    second = inputs.T @ inputs
    moment = functional.pad(second + DAMPING * second.diagonal().mean() * torch.eye(len(second)), (0, 1, 0, 1))
    after = nn.Linear(inputs.shape[1], projection.out_features, bias=False)
    after.weight.data.zero_()
    fitted = nn.Linear(inputs.shape[1], projection.out_features, bias=False)
    fitted.weight.data.copy_(projection.weight)
    write(after, keep, solution(fitted, moment, keep, damping=0.0))
    change = (after.weight - projection.weight).detach()
    return float((gradients @ change @ moment[:-1, :-1] * change).sum())


def test_of_two_twins_one_is_free_and_then_the_other_is_dear() -> None:
    inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    inputs[:, 2] = inputs[:, 0]
    projection = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        projection.weight.fill_(1.0)
    scores = removal_order(projection, 4, inputs, torch.ones(300, 3))
    free, dear = sorted(scores[[0, 2]].tolist())
    assert free < 0.01 * float(scores[1])
    assert dear > 2 * float(scores[1])


def test_wide_units_are_scored_on_several_threads() -> None:
    torch.set_num_threads(2)
    network = a_network("llama", "LlamaForCausalLM", head_dim=96)
    for scores in second_order(network, "attention_heads"):
        assert scores.shape == (2,) and bool(scores.isfinite().all())


def test_tokens_that_the_task_does_not_read_do_not_count() -> None:
    inputs = torch.zeros(200, 2)
    inputs[:100, 0], inputs[100:, 1] = 1.0, 10.0
    projection = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        projection.weight.fill_(1.0)
    pull = torch.cat([torch.ones(100, 1), torch.zeros(100, 1)])
    scores = removal_order(projection, 2, inputs, pull)
    assert float(scores[1]) < 0.01 * float(scores[0])


@pytest.mark.parametrize("name", sorted(UNITS))
def test_fisher_is_the_mean_square_of_each_rows_own_gate_gradient(name: str) -> None:
    network, structure = tiny_network("bert"), STRUCTURES[name]
    found = scored(network, name, fisher, FisherSpec(kind="fisher"), batches=1)
    batch = inputs_of(network, 0)
    expected = [torch.zeros(group.units) for group in structure.groups(network)]
    wanted = torch.randint(0, 3, (3,), generator=torch.Generator().manual_seed(4))
    for row in range(3):
        gates = [Gate(torch.ones(len(values)), learn=True) for values in expected]
        with gated(network, structure, gates):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            functional.cross_entropy(forward(network, one).logits, wanted[row : row + 1]).backward()
        for values, gate in zip(expected, gates, strict=True):
            values.add_(gate.gradients[0].square())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-9) for a, b in zip(found, expected, strict=True))


def test_fisher_of_single_weights_is_the_square_of_weight_times_gradient() -> None:
    network = tiny_network("distilbert")
    found = scored(network, "weights", fisher, FisherSpec(kind="fisher"), batches=1)
    network.zero_grad(set_to_none=True)
    loss_of(network, inputs_of(network, 0)).backward()
    for values, group in zip(found, STRUCTURES["weights"].groups(network), strict=True):
        weight: Any = group.parts[0].parameter
        assert torch.allclose(values, (weight * weight.grad).square().flatten())
