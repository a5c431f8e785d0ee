"""How much alike layers are: by the states between them (Gromov et al., 2024), and by their weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from service.specs.findings import Alike, Square
from workers.engine.criteria.tokens import Tokens
from workers.engine.families import family_of
from workers.engine.families.family import Side
from workers.engine.rounding import brief
from workers.engine.structures.layers import hidden_states, input_states
from workers.engine.tasks import Batch
from workers.engine.tasks.task import inputs_in


def alike(network: PreTrainedModel, batches: Sequence[Batch]) -> list[Alike]:
    """Every stack of a family that has layers of their own; states only where there are batches of rows."""
    family = family_of(network)
    if family.shares_layers:
        return []
    sides = family.sides(network)
    states = between_layers(network, sides, batches) if batches else [None] * len(sides)
    return [
        Alike(stack=side.stack.name, states=_told(found), weights=_told(weights_alike(side.modules)))
        for side, found in zip(sides, states, strict=True)
    ]


def _told(table: Tensor | None) -> Square | None:
    return None if table is None else [[brief(value, 4) for value in row] for row in table.tolist()]


@torch.no_grad()
def between_layers(network: PreTrainedModel, sides: Sequence[Side], batches: Sequence[Batch]) -> list[Tensor]:
    """Per stack the mean cosines, over all tokens but padding, of what enters its first layer and leaves each layer.

    Tensors of (layers + 1, layers + 1).
    """
    tokens = Tokens(network)
    caught: list[list[Tensor]] = [[] for _ in sides]
    handles = [handle for found, side in zip(caught, sides, strict=True) for handle in _watch(side, tokens, found)]
    sums, counts = [torch.zeros(len(side.modules) + 1, len(side.modules) + 1) for side in sides], [0] * len(sides)
    network.train(False)
    for batch in batches:
        network(**inputs_in(batch, network))
        for place, states in enumerate(caught):
            unit = functional.normalize(torch.stack(states), dim=-1).flatten(1)
            sums[place] += (unit @ unit.T).cpu()
            counts[place] += len(states[0])
            states.clear()
    for handle in handles:
        handle.remove()
    tokens.close()
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _watch(side: Side, tokens: Tokens, found: list[Tensor]) -> list[RemovableHandle]:
    """Has the stack's states put into `found`, each of (tokens, features)."""

    def enter(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(tokens.rows(input_states(args, kwargs)))

    def leave(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        found.append(tokens.rows(hidden_states(output)))

    first = side.modules[0].register_forward_pre_hook(enter, with_kwargs=True)
    return [first, *(layer.register_forward_hook(leave) for layer in side.modules)]


@torch.no_grad()
def weights_alike(layers: Sequence[nn.Module] | nn.ModuleList) -> Tensor | None:
    """Cosines of the layers' weights, the mean over matrices, of (layers, layers); None where their shapes differ."""
    matrices = [{name: p.detach().float() for name, p in layer.named_parameters() if p.dim() > 1} for layer in layers]
    # The first layer of T5 has a table of positions that the others lack.
    names = sorted(set[str]().union(*matrices).intersection(*matrices))
    if not names or any(len({own[name].shape for own in matrices}) > 1 for name in names):
        return None
    total = torch.zeros(len(matrices), len(matrices))
    for name in names:
        unit = functional.normalize(torch.stack([own[name].flatten() for own in matrices]), dim=-1)
        total += (unit @ unit.T).cpu()
    return total / len(names)
