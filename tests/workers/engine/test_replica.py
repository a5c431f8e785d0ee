"""Copies: independent, in the type asked for, and with what is computed left as precise as it is made."""

from pathlib import Path

import pytest
import torch

from tests.workers.engine.tiny import logits, task_of, tiny_inputs, tiny_network
from workers.engine.exporters import EXPORTERS
from workers.engine.replica import replica
from workers.engine.verification import verify


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float16), ("llama", torch.bfloat16), ("marian", torch.float16)]
)
def test_a_16_bit_copy_of_rounded_weights_is_the_network(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    network = tiny_network(family)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(dtype))
    small = replica(network, dtype=dtype)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert {value.dtype for value in small.state_dict().values() if value.is_floating_point()} == {dtype}
    back = replica(small, dtype=torch.float32)
    inputs = tiny_inputs(network)
    assert torch.equal(logits(back, inputs), logits(network, inputs))
    task = task_of(family)
    EXPORTERS["huggingface"].export(small, tmp_path / "huggingface", tmp_path, task)
    assert verify(small, [("huggingface", tmp_path / "huggingface")], task, scratch=tmp_path)[0]["failure"] is None


def test_a_copy_shares_nothing() -> None:
    network = tiny_network("bert")
    twin = replica(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(bool(parameter.any()) for parameter in network.parameters() if parameter.dim() > 1)
