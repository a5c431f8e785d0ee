"""Values that are taken and put back: each once, in the memory that is there, exactly."""

from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

from tests.models import tiny_network
from workers.engine.snapshot import (
    chance_of,
    copy_of,
    moments_of,
    put_back,
    put_back_chance,
    put_back_moments,
    values_of,
)

CPU = torch.device("cpu")


def test_tied_weights_are_there_once_and_stay_tied() -> None:
    network = tiny_network("marian", "MarianMTModel")
    values = values_of(network)
    assert sum(value.shape == (120, 32) for value in values.values()) == 1
    assert {id(p) for p in network.parameters()} <= {id(value) for value in values.values()}
    kept = copy_of(network)
    places = [parameter.data_ptr() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    put_back(network, kept)
    assert all(torch.equal(value, kept[name]) for name, value in values_of(network).items())
    assert [parameter.data_ptr() for parameter in network.parameters()] == places
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight


def test_values_of_another_size_are_refused() -> None:
    network = tiny_network("bert", "BertModel")
    other = copy_of(tiny_network("bert", "BertModel", intermediate_size=40))
    with pytest.raises(ValueError, match="other sizes"):
        put_back(network, other)
    with pytest.raises(ValueError, match="other sizes"):
        put_back(network, dict(list(copy_of(network).items())[1:]))


def momentum(parameters: list[torch.nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("kind", [AdamW, momentum])
def test_an_optimizer_goes_on_as_it_would_have(kind: Any) -> None:
    start = torch.arange(6.0).view(2, 3).T  # columns first in memory

    def steps(optimizer: Optimizer, weight: torch.Tensor, count: int) -> None:
        for _ in range(count):
            weight.grad = weight.detach().cos()
            optimizer.step()

    unused = torch.nn.Parameter(torch.ones(2))
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    first, second = (kind([unused, weight]) for weight in weights)
    steps(first, weights[0], 3)
    with torch.no_grad():
        weights[1].copy_(weights[0])
    moments = {name: value.clone().contiguous() for name, value in moments_of(first).items()}
    assert moments and all(name.startswith("1.") for name in moments)
    put_back_moments(second, moments)
    for optimizer, weight in zip((first, second), weights, strict=True):
        steps(optimizer, weight, 3)
    assert torch.equal(weights[0], weights[1])
    assert all(
        value.stride() == ours.stride()
        for value, ours in zip(moments_of(first).values(), moments_of(second).values(), strict=True)
    )


def test_chance_repeats_itself() -> None:
    states = chance_of(CPU)
    drawn = torch.rand(3)
    assert not torch.equal(torch.rand(3), drawn)
    put_back_chance(CPU, states)
    assert torch.equal(torch.rand(3), drawn)
