"""Targets: heads and neurons chosen together so that what is left of the layers fits a number of FLOPs or weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Target
from service.specs.criteria import SecondOrder as SecondOrderSpec
from workers.engine.budget import solve, solve_uniform
from workers.engine.criteria.second_order import SecondOrder
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.sizes import heads_per_unit, hidden_size_of
from workers.engine.repair import repair
from workers.engine.scoring import BATCH, finite, read_rows
from workers.engine.slicing import columns_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group
from workers.engine.tasks import Task

STRUCTURES_CUT = ("attention_heads", "ffn_neurons")


@dataclass(frozen=True)
class Bill:
    """What one unit costs, in multiply-adds per token or in parameters; `tokens` is the length that attention spans."""

    metric: str
    tokens: int

    def unit(self, structure: str, group: Group) -> float:
        """Of a group's units, which are all of one size."""
        if self.metric == "parameters":
            return float(group.totals(torch.ones_like)[0])
        work = float(group.totals(_in_matrices)[0])
        if structure == "attention_heads":
            # Every feature of a query meets those of all keys, and every weight all values.
            work += sum(2.0 * self.tokens * columns_of(output) / group.units for output in group.outputs)
        return work

    def total(self, network: PreTrainedModel) -> float:
        """Of all heads and neurons."""
        return sum(
            self.unit(name, group) * group.units
            for name in STRUCTURES_CUT
            for group in STRUCTURES[name].groups(network)
        )


def _in_matrices(parameter: Tensor) -> Tensor:
    return torch.ones_like(parameter) if parameter.dim() > 1 else torch.zeros_like(parameter)


def prune_units(
    network: PreTrainedModel,
    task: Task,
    target: Target,
    budget: float,
    tokens: int,
    *,
    uniform: bool = False,
    structures: tuple[str, ...] = STRUCTURES_CUT,
    advance: Callable[[int], None] = lambda _passes: None,
    cut: Callable[[str, list[Tensor]], None] | None = None,
) -> dict[str, tuple[int, int]]:
    """Cuts `network` in place until its heads and neurons cost at most `budget` (see `Bill`); returns removed and of.

    Second-order scores of both structures from one reading of `target.samples` rows, the best units that the budget
    buys, then the repair of what is left. With `uniform` all layers keep the same number, one that a stock config can
    say; what is not in `structures` stays whole. One unit of each group always stays. Raises EngineError NOT_FINITE
    where the weights are broken, TARGET_OUT_OF_REACH where the least network is over the budget; both before anything
    is cut. `cut` is given a structure and its masks and does what `Structure.cut` does.
    """
    bill = Bill(target.metric, tokens)
    check_reach(network, bill, budget, structures)
    groups = [(name, group) for name in STRUCTURES_CUT for group in STRUCTURES[name].groups(network)]
    costs = [bill.unit(name, group) for name, group in groups]
    minimum = [1 if name in structures else group.units for name, group in groups]
    scores = second_order_scores(network, task, target.samples, advance)
    if uniform:
        allowed = {name: numbers for name, numbers in stock_counts(network).items() if name in structures}
        keep = solve_uniform(scores, costs, budget, minimum, [name for name, _ in groups], allowed)
    else:
        keep = solve(scores, costs, budget, minimum)
    masks = {
        name: [mask for mask, (owner, _) in zip(keep, groups, strict=True) if owner == name] for name in STRUCTURES_CUT
    }
    rows = task.sample_size(target.samples)
    repair(network, [(STRUCTURES[name], masks[name]) for name in structures], list(task.sample(rows, BATCH)))
    advance(rows)
    for name in structures:
        (cut or partial(_cut, network))(name, masks[name])
    return {
        name: (sum(int((~mask).sum()) for mask in masks[name]), sum(len(mask) for mask in masks[name]))
        for name in structures
    }


def _cut(network: PreTrainedModel, structure: str, keep: list[Tensor]) -> None:
    STRUCTURES[structure].cut(network, keep)


def check_reach(network: PreTrainedModel, bill: Bill, budget: float, structures: tuple[str, ...]) -> None:
    """Raises EngineError TARGET_OUT_OF_REACH where one unit of each group, and all that is whole, are over `budget`."""
    least = sum(
        bill.unit(name, group) * (1 if name in structures else group.units)
        for name in STRUCTURES_CUT
        for group in STRUCTURES[name].groups(network)
    )
    if least > budget:
        message = "the target is below what must stay, a head and a neuron in each layer; raise ratio"
        if "attention_heads" not in structures:
            message = (
                "the target is below what must stay: a stock config of this family cannot say fewer heads, so that all "
                "of them do; raise ratio, or export huggingface_custom"
            )
        raise EngineError("TARGET_OUT_OF_REACH", message, blame="user")


def stock_counts(network: PreTrainedModel) -> dict[str, list[int]]:
    """Numbers of units in a layer that a stock config can say, where not all can: heads that divide the hidden size.

    One key-value head is always among them, since the query heads of all of them divide it.
    """
    if not family_of(network).facts.heads_divide_hidden:
        return {}
    hidden, together = hidden_size_of(network), heads_per_unit(network)
    return {"attention_heads": [units for units in range(1, hidden + 1) if hidden % (units * together) == 0]}


def second_order_scores(
    network: PreTrainedModel, task: Task, samples: int, advance: Callable[[int], None] = lambda _passes: None
) -> list[Tensor]:
    """Scores of the heads of every group, then of the neurons, all in one unit: one reading serves both."""
    spec = SecondOrderSpec(kind="second_order", samples=samples)
    generator = torch.Generator()  # the method leaves nothing to chance
    criteria = [SecondOrder(spec, STRUCTURES[name], generator) for name in STRUCTURES_CUT]
    for name, criterion in zip(STRUCTURES_CUT, criteria, strict=True):
        criterion.attach(network, STRUCTURES[name].groups(network))
    read_rows(network, criteria, task, samples, advance)
    return finite([values for criterion in criteria for values in criterion.scores()])
