"""Cutting block by block, on tiny random causal language models."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.engine.failures import EngineError
from workers.engine.layerwise import Method, SparseGpt, Wanda, prune_blocks
from workers.engine.layerwise.block_run import BlockRun
from workers.engine.layerwise.feed import stream_into
from workers.engine.slicing import matrix_of, projections_in, weight_of
from workers.engine.solvers.wanda import keep_mask, wanda_scores

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "bloom")
METHODS = [Wanda(refit_steps=0), Wanda(), SparseGpt()]


def causal(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A network of two blocks, hidden size 32, with weights large enough to matter, and its blocks."""
    torch.manual_seed(seed)
    llama: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    network: Any
    if kind == "gpt2":
        network = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2))
        return network, network.transformer.h
    if kind == "bloom":
        network = BloomForCausalLM(
            BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
        )
        return network, network.transformer.h
    if kind in ("qwen2", "mistral"):  # a window shorter than the text: every block has a mask of its own kind
        llama |= {"sliding_window": 4} | (
            {"use_sliding_window": True, "max_window_layers": 1} if kind == "qwen2" else {}
        )
    classes: dict[str, Any] = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "mistral": (MistralForCausalLM, MistralConfig),
    }
    network = classes[kind][0](classes[kind][1](**llama))
    return network, network.model.layers


def texts() -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(7)
    return [{"input_ids": torch.randint(0, 100, (4, 12), generator=chance)} for _ in range(3)]


def prune(network: nn.Module, blocks: Any, method: Method, **more: Any) -> list[float]:
    told: list[float] = []
    prune_blocks(network, blocks, more.pop("batches", texts()), method, told.append, **more)
    return told


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=["wanda", "wanda-refit", "sparsegpt"])
def test_every_matrix_of_every_block_loses_its_half(kind: str, method: Method) -> None:
    network, blocks = causal(kind)
    network.train()
    head = network.get_output_embeddings().weight.clone()
    told = prune(network, blocks, method)
    for linear in (linear for block in blocks for linear in projections_in(block)):
        assert int((matrix_of(linear) == 0).sum()) * 2 == matrix_of(linear).numel()
        assert matrix_of(linear).isfinite().all()
    assert torch.equal(head, network.get_output_embeddings().weight)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_two_of_four_run_along_the_inputs(kind: str) -> None:
    network, blocks = causal(kind)
    prune(network, blocks, SparseGpt(pattern=(2, 4)))
    for linear in (linear for block in blocks for linear in projections_in(block)):
        assert ((matrix_of(linear) != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_blocks_are_fed_with_is_what_the_network_feeds_them(kind: str) -> None:
    network, blocks = causal(kind)
    network.eval()
    padded = [batch | {"attention_mask": torch.ones(4, 12, dtype=torch.long)} for batch in texts()]
    padded[0]["attention_mask"][0, 8:] = 0
    seen: list[Tensor] = []
    handle = blocks[1].register_forward_hook(
        lambda _block, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        for batch in padded:
            network(**batch)
        handle.remove()
        stream = stream_into(network, blocks, padded)
        for number, block in enumerate(blocks):
            BlockRun(block, stream, number).advance()
    assert all(torch.allclose(state, expected, atol=1e-5) for state, expected in zip(stream.states, seen, strict=True))


def test_the_first_inputs_are_those_of_the_uncut_network() -> None:
    network, blocks = causal("llama")
    first = blocks[0].self_attn.q_proj
    sums, before = torch.zeros(32), first.weight.detach().clone()

    def add(_linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        sums.add_(args[0].square().sum((0, 1)))

    handle = first.register_forward_pre_hook(add)
    with torch.no_grad():
        for batch in texts():
            network(**batch)
    handle.remove()
    prune(network, blocks, Wanda(refit_steps=0))
    assert torch.equal(first.weight, before * keep_mask(wanda_scores(before, sums.detach())))


def test_matrices_with_the_same_input_stand_together() -> None:
    network, blocks = causal("llama")
    stream = stream_into(network, blocks, texts())
    names = {module: name.split(".")[-1] for name, module in blocks[0].named_modules()}
    stages = [[names[linear] for linear in stage] for stage in BlockRun(blocks[0], stream, 0).stages()]
    assert stages == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


@pytest.mark.parametrize("pairs", [False, True])
def test_padding_does_not_count(pairs: bool) -> None:
    network, blocks = causal("llama")
    mask = nn.functional.pad(torch.ones(4, 12, dtype=torch.long), (0, 5))
    padded = [
        {"input_ids": nn.functional.pad(b["input_ids"], (0, 5), value=3), "attention_mask": mask} for b in texts()
    ]
    with torch.no_grad():
        plain, wide = (BlockRun(blocks[0], stream_into(network, blocks, given), 0) for given in (texts(), padded))
        for linear in projections_in(blocks[0]):
            found = wide.statistic(linear, pairs=pairs)
            assert torch.allclose(found, plain.statistic(linear, pairs=pairs), rtol=1e-4, atol=1e-3)


def test_second_order_keeps_more_of_the_outputs() -> None:
    dense, _ = causal("llama", seed=1)
    fresh = {"input_ids": torch.randint(0, 100, (8, 12), generator=torch.Generator().manual_seed(8))}
    text = [{"input_ids": torch.randint(0, 100, (32, 12), generator=torch.Generator().manual_seed(9))}]
    errors = []
    for method in (SparseGpt(), SparseGpt(refit_steps=0), Wanda(refit_steps=0)):
        network, blocks = causal("llama", seed=1)
        prune(network, blocks, method, batches=text)
        with torch.no_grad():
            errors.append(float((network(**fresh).logits - dense(**fresh).logits).square().mean()))
    assert errors == sorted(errors)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_same_order_gives_the_same_weights(bfloat16: bool) -> None:
    precision = torch.get_float32_matmul_precision()
    twins = [causal("qwen3") for _ in range(2)]
    for network, blocks in twins:
        prune(network, blocks, SparseGpt(), bfloat16=bfloat16)
    states = [network.state_dict() for network, _ in twins]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.get_float32_matmul_precision() == precision


def test_a_network_keeps_its_types() -> None:
    network, blocks = causal("llama")
    network.to(torch.bfloat16)
    kinds = {name: value.dtype for name, value in network.state_dict().items()}
    prune(network, blocks, SparseGpt(share=0.25))
    assert {name: value.dtype for name, value in network.state_dict().items()} == kinds
    assert int((blocks[1].mlp.down_proj.weight == 0).sum()) * 4 == 32 * 48


class Chooser(nn.Module):
    """A block with a matrix that its input never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.used(hidden)
        return hidden + added


def test_what_is_never_reached_is_cut_by_magnitude() -> None:
    torch.manual_seed(0)
    blocks: Any = nn.ModuleList([Chooser(), Chooser()])

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, inputs: Tensor) -> Tensor:
            first, second = self.blocks
            hidden: Tensor = second(first(inputs))
            return hidden

    before: Tensor = blocks[0].unused.weight.detach().clone()
    prune(Plain(), blocks, Wanda(), batches=[{"inputs": torch.randn(2, 5, 8)}])
    assert torch.equal(blocks[0].unused.weight, before * keep_mask(before.abs()))


def test_a_broken_network_is_refused() -> None:
    network, blocks = causal("gpt2")
    with torch.no_grad():
        blocks[0].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(EngineError) as caught:
        prune(network, blocks, SparseGpt())
    assert caught.value.code == "NOT_FINITE"
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in network.modules())


def zeros_of(block: nn.Module) -> float:
    """Share of the weights of a block that is zero."""
    weights = torch.cat([matrix_of(linear).flatten() for linear in projections_in(block)])
    return float((weights == 0).double().mean())


@pytest.mark.parametrize("method", METHODS, ids=["wanda", "wanda-refit", "sparsegpt"])
def test_a_block_with_more_outliers_loses_less_and_all_lose_what_was_asked(method: Method) -> None:
    network, blocks = causal("llama")
    with torch.no_grad():
        for linear in projections_in(blocks[1]):
            weight_of(linear)[::8] *= 20.0
    told = prune(network, blocks, replace(method, spread=0.1))
    first, second = (zeros_of(block) for block in blocks)
    assert first - second == pytest.approx(0.2, abs=0.01)
    assert (first + second) / 2 == pytest.approx(0.5, abs=0.001)
    assert told == sorted(told) and told[-1] == 1.0


def test_of_so_many_neighbours_no_block_keeps_more() -> None:
    network, blocks = causal("llama")
    prune(network, blocks, Wanda(pattern=(2, 4), spread=0.1))
    assert [zeros_of(block) for block in blocks] == [0.5, 0.5]


def test_weights_are_rounded_to_what_they_are_stored_in_and_zeros_have_no_sign() -> None:
    network, blocks = causal("llama")
    prune(network, blocks, SparseGpt(), stored=torch.bfloat16)
    for linear in (linear for block in blocks for linear in projections_in(block)):
        weight = weight_of(linear)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weight.bfloat16().float())
        assert not bool(weight[weight == 0].signbit().any())


def test_masks_that_batches_share_are_held_once() -> None:
    network, blocks = causal("llama")
    different = torch.randint(0, 100, (4, 7), generator=torch.Generator().manual_seed(1))
    network.set_attn_implementation("eager")
    stream = stream_into(network, blocks, [*texts(), {"input_ids": different}])
    masks = [kwargs["attention_mask"] for _, kwargs in stream.calls[1]]
    assert masks[0] is masks[1] is masks[2] is not masks[3]
    assert [mask.shape[-1] for mask in masks] == [12, 12, 12, 7]
