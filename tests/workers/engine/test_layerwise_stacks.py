"""Cutting both stacks of encoder-decoders block by block."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.workers.engine.tiny import logits, tiny_network
from workers.engine.allocation import exact
from workers.engine.families import family_of
from workers.engine.families.family import Side
from workers.engine.layerwise import Method, SparseGpt, Wanda, prune_blocks
from workers.engine.layerwise.block_run import BlockRun
from workers.engine.layerwise.feed import stream_into
from workers.engine.replica import replica
from workers.engine.slicing import matrix_of, projections_in, weight_of

KINDS = ("marian", "bart", "t5")
METHODS = [Wanda(refit_steps=0), Wanda(), SparseGpt()]


def pairs(rows: int = 4, seed: int = 5) -> list[dict[str, Tensor]]:
    """Two batches whose sides are of one length, so that no shape tells them apart; one row of each side is padded."""
    chance = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(2):
        ids, before = torch.randint(4, 120, (2, rows, 9), generator=chance)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": before})
    return batches


def spoken(batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """Tokens of the decoder that are no padding: all but two of the third row."""
    masks = [torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool) for batch in batches]
    for mask in masks:
        mask[2, 7:] = False
    return masks


def prune(network: PreTrainedModel, method: Method, batches: list[dict[str, Tensor]] | None = None) -> None:
    """Both stacks."""
    batches = batches or pairs()
    for side in family_of(network).sides(network):
        counted = spoken(batches) if side.second else None
        prune_blocks(network, side.modules, batches, method, lambda _share: None, counted=counted)


def decoder_of(network: PreTrainedModel) -> Side:
    return family_of(network).sides(network)[1]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=["wanda", "wanda-refit", "sparsegpt"])
def test_half_of_every_matrix_of_both_stacks_goes_and_nothing_of_none(kind: str, method: Method) -> None:
    network = tiny_network(kind)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prune(network, method.with_share(0.0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    prune(network, method)
    for side in family_of(network).sides(network):
        for linear in projections_in(side.modules):
            assert int((matrix_of(linear) == 0).sum()) * 2 == matrix_of(linear).numel()
    assert bool(logits(network, pairs()[0]).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_decoder_is_fed_with_is_what_the_network_feeds_it(kind: str) -> None:
    network, batches = tiny_network(kind), pairs()
    blocks = decoder_of(network).modules
    seen: list[Tensor] = []
    handle = blocks[-1].register_forward_hook(
        lambda _block, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        for batch in batches:
            network(**batch, use_cache=False)
        handle.remove()
        stream = stream_into(network, blocks, batches)
        for number, block in enumerate(blocks):
            BlockRun(block, stream, number).advance()
    assert all(torch.allclose(state, expected, atol=1e-5) for state, expected in zip(stream.states, seen, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_counts_on_neither_side(kind: str) -> None:
    network, batches = tiny_network(kind), pairs()
    side = decoder_of(network)
    own, cross = side.layers[0].attentions
    own_tokens = torch.cat(spoken(batches)).flatten()
    source_tokens = torch.cat([batch["attention_mask"] for batch in batches]).flatten().bool()
    watched = {own.inputs[0]: own_tokens, cross.inputs[0]: own_tokens, cross.inputs[1]: source_tokens}
    seen: dict[nn.Module, list[Tensor]] = {linear: [] for linear in watched}
    handles = [
        linear.register_forward_pre_hook(lambda module, args: seen[module].append(args[0].flatten(0, 1)))
        for linear in watched
    ]
    with torch.no_grad():
        for batch in batches:
            network(**batch, use_cache=False)
        for handle in handles:
            handle.remove()
        run = BlockRun(side.modules[0], stream_into(network, side.modules, batches, spoken(batches)), 0)
        for linear, counted in watched.items():
            expected = torch.cat(seen[linear])[counted].square().sum(0)
            assert torch.allclose(run.statistic(linear, pairs=False), expected, rtol=1e-4)
            assert torch.allclose(run.statistic(linear, pairs=True).diagonal(), expected, rtol=1e-4)


def with_small_weights_that_matter(kind: str) -> Any:
    """Half of the values that attention mixes are large, and what reads them small: the network is what it was."""
    network = tiny_network(kind)
    with torch.no_grad():
        for side in family_of(network).sides(network):
            for attention in (attention for layer in side.layers for attention in layer.attentions):
                value, output = attention.inputs[2], attention.output
                factors = torch.where(torch.arange(len(weight_of(value))) % 2 == 0, 30.0, 1.0)
                weight_of(value).mul_(factors[:, None])
                weight_of(output).div_(factors)
                if isinstance(value.bias, Tensor):
                    value.bias.mul_(factors)
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=["wanda", "wanda-refit", "sparsegpt"])
def test_outputs_stay_nearer_than_by_magnitude(kind: str, method: Method) -> None:
    dense, fresh = with_small_weights_that_matter(kind), pairs(seed=6)[0]
    solved, smallest = replica(dense), replica(dense)
    prune(solved, method, pairs(rows=24))
    with torch.no_grad():
        for side in family_of(smallest).sides(smallest):
            for weight in map(weight_of, projections_in(side.modules)):
                weight.mul_(exact([weight.abs().flatten()], 0.5, ranked=False)[0].view_as(weight))
    errors = [float((logits(network, fresh) - logits(dense, fresh)).square().mean()) for network in (solved, smallest)]
    assert errors[0] < 0.8 * errors[1]
