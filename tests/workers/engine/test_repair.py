"""Repair: least squares against a direct solution, for every family, and what it saves on a real cut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.workers.engine.tiny import FAMILIES, logits, tiny_inputs, tiny_network
from workers.engine.repair import repair, solution, tokens, write
from workers.engine.structures import STRUCTURES
from workers.engine.tasks.task import INPUTS, forward

NAMES = ("attention_heads", "ffn_neurons")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def mend(linear: nn.Linear, inputs: Tensor, keep: Tensor, damping: float) -> None:
    with_one = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    with torch.no_grad():
        write(linear, keep, solution(linear, with_one.T @ with_one, keep, damping))


def halves(network: PreTrainedModel, name: str) -> list[Tensor]:
    return [torch.arange(group.units) % 2 == 0 for group in STRUCTURES[name].groups(network)]


def rows_of(network: PreTrainedModel, batches: int = 6) -> list[dict[str, Any]]:
    chance = torch.Generator().manual_seed(2)
    found = []
    for _ in range(batches):
        inputs = tiny_inputs(network)
        inputs["input_ids"] = torch.randint(5, 120, inputs["input_ids"].shape, generator=chance)
        found.append(inputs)
    return found


def test_without_damping_it_is_ordinary_least_squares_with_a_constant() -> None:
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=chance) @ torch.randn(6, 6, generator=chance) + 1.0
    linear = nn.Linear(6, 4)
    wanted = linear(inputs).detach()
    keep = torch.tensor([True, False, True])
    mend(linear, inputs, keep, damping=0.0)
    kept = inputs[:, [0, 1, 4, 5]]
    direct = torch.linalg.lstsq(torch.cat([kept, torch.ones(200, 1)], dim=1), wanted).solution
    assert torch.allclose(linear.weight[:, [0, 1, 4, 5]].T, direct[:-1], atol=1e-3)
    assert torch.allclose(linear.bias, direct[-1], atol=1e-3)


def test_inputs_that_never_move_are_folded_into_the_bias_without_loss() -> None:
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = 5.0
    linear = nn.Linear(3, 2)
    wanted = linear(inputs).detach()
    mend(linear, inputs, torch.tensor([True, False, True]), damping=1e-6)
    found = inputs[:, [0, 2]] @ linear.weight[:, [0, 2]].T + linear.bias
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_twin_takes_over_the_work_of_a_neuron_also_without_a_bias() -> None:
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = inputs[:, 0]
    linear = nn.Linear(3, 2, bias=False)
    wanted = linear.weight[:, 0] + linear.weight[:, 1]
    mend(linear, inputs, torch.tensor([True, False, True]), damping=1e-6)
    assert torch.allclose(linear.weight[:, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_repaired_cut_stays_nearer_to_the_network_than_a_bare_one(family: str, name: str) -> None:
    structure, dense = STRUCTURES[name], tiny_network(family)
    batches = rows_of(dense)
    distances = []
    for mended in (False, True):
        network = tiny_network(family)
        keep = halves(network, name)
        outputs = [output for group in structure.groups(network) for output in group.outputs]
        if mended:
            repair(network, [(structure, keep)], batches)
        assert all(not output._forward_pre_hooks for output in outputs)
        structure.cut(network, keep)
        distances.append(sum(float((logits(network, b) - logits(dense, b)).square().mean()) for b in batches))
    assert distances[1] < distances[0]


def test_what_stays_whole_is_left_alone_and_so_is_the_mode() -> None:
    network = tiny_network("bert").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep = halves(network, "ffn_neurons")
    keep[0][:] = True
    repair(network, [(STRUCTURES["ffn_neurons"], keep)], rows_of(network))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"bert.encoder.layer.1.output.dense.{part}" for part in ("weight", "bias")}
    assert network.training


def test_little_memory_takes_more_passes_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [tiny_network("bert"), tiny_network("bert")]
    passes = []
    for network, memory in zip(twins, (1 << 29, 1), strict=True):
        monkeypatch.setattr("workers.engine.repair.MOMENTS_AT_ONCE", memory)
        seen: list[int] = []
        network.register_forward_pre_hook(lambda *_args, seen=seen: seen.append(1))
        repair(network, [(STRUCTURES[name], halves(network, name)) for name in NAMES], rows_of(network))
        passes.append(len(seen))
    assert passes == [6, 24]
    assert all(torch.equal(value, twins[1].state_dict()[name]) for name, value in twins[0].state_dict().items())


def test_padding_does_not_count() -> None:
    encoder = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert tokens(encoder, "encoder", torch.zeros(1, 3, 8)).tolist() == [[True, True, False]]
    both = encoder | {"decoder_input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[2, -100]])}
    assert tokens(both, "decoder", torch.zeros(1, 2, 8)).tolist() == [[True, False]]
    network = tiny_network("bert")
    (batch,) = rows_of(network, 1)
    longer = {name: nn.functional.pad(value, (0, 4)) for name, value in batch.items() if name in INPUTS}
    assert forward(network, longer).logits.shape == forward(network, batch).logits.shape
    twins = [tiny_network("bert"), tiny_network("bert")]
    for twin, rows in zip(twins, (batch, longer), strict=True):
        repair(twin, [(STRUCTURES["ffn_neurons"], halves(twin, "ffn_neurons"))], [rows])
    weights = [twin.state_dict()["bert.encoder.layer.0.output.dense.weight"] for twin in twins]
    assert torch.allclose(weights[0], weights[1], atol=1e-4)
