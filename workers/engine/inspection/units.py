"""What units are worth: scores of one structure by several criteria, and what is told of them."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs.findings import IDLE_SCORE, QUANTILES, GroupScores
from service.specs.inspection import Scoring
from workers.engine.criteria import CRITERIA
from workers.engine.criteria.criterion import Criterion
from workers.engine.families import family_of
from workers.engine.rounding import brief
from workers.engine.scoring import finite, read_rows
from workers.engine.slicing import projections_in
from workers.engine.structures.structure import Group, Structure
from workers.engine.tasks import Task

NUMEROUS = frozenset({"ffn_neurons", "weights"})
"""Structures of so many units that each layer is told by quantiles alone."""
SAMPLE = 1 << 20
"""Most scores of a group that are sorted: of more every so many are taken."""


def score(
    network: PreTrainedModel,
    structure: Structure,
    specs: Sequence[Scoring],
    task: Task | None,
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> list[tuple[Criterion, list[Tensor]]]:
    """Each criterion with one tensor of (units,) per group; those that need the same of the same rows share a reading.

    Raises EngineError NOT_FINITE where the network is broken and its units cannot be told apart.
    """
    groups = structure.groups(network)
    criteria = [CRITERIA[spec.kind](spec, structure, generator) for spec in specs]
    alike: dict[tuple[str, int], list[Criterion]] = defaultdict(list)
    for criterion in criteria:
        alike[criterion.needs, getattr(criterion.spec, "samples", 0)].append(criterion)
    found: dict[Criterion, list[Tensor]] = {}
    for (needs, samples), some in alike.items():
        for criterion in some:
            criterion.attach(network, groups)
        if needs != "nothing":
            assert task is not None  # the door refuses such an inspection without a data set
            read_rows(network, some, task, samples, advance)
        found |= {criterion: finite(criterion.scores()) for criterion in some}
    return [(criterion, found[criterion]) for criterion in criteria]


def summaries(
    network: PreTrainedModel, structure: Structure, groups: Sequence[Group], scores: Sequence[Tensor]
) -> list[GroupScores]:
    """What is told of the scores: group by group, or of single weights layer by layer."""
    if structure.name == "weights":
        return [
            summary(stack, layer, "", torch.cat([scores[index] for index in matrices]), each=False)
            for (stack, layer), matrices in _matrices_of_layers(network).items()
        ]
    each = structure.name not in NUMEROUS
    return [
        summary(group.stack, None if group.layer < 0 else group.layer, group.place, values, each=each)
        for group, values in zip(groups, scores, strict=True)
    ]


def _matrices_of_layers(network: PreTrainedModel) -> dict[tuple[str, int], list[int]]:
    """Which groups of the structure `weights` lie in which layer, by stack and index."""
    found: dict[tuple[str, int], list[int]] = {}
    first = 0
    for side in family_of(network).sides(network):
        for layer, module in enumerate(side.modules):
            count = len(projections_in(module))
            found[side.stack.name, layer] = list(range(first, first + count))
            first += count
    return found


def summary(stack: str, layer: int | None, place: str, scores: Tensor, *, each: bool) -> GroupScores:
    """What is told of one group; with `each` the score of every unit too."""
    taken = scores[:: -(-len(scores) // SAMPLE)].double().sort().values
    places = [round(share * (len(taken) - 1)) for share in QUANTILES]
    return GroupScores(
        stack=stack,
        layer=layer,
        place=place,
        units=len(scores),
        mean=brief(float(taken.mean())),
        idle=brief(idle_share(taken)),
        quantiles=[brief(float(taken[place])) for place in places],
        scores=[brief(value) for value in scores.tolist()] if each else None,
    )


def idle_share(ordered: Tensor) -> float:
    """Share of the units, their scores in rising order, that hold `IDLE_SCORE` of all score together at most."""
    total = float(ordered.sum())
    if total <= 0:
        return 1.0
    return int((ordered.cumsum(0) <= IDLE_SCORE * total).sum()) / len(ordered)
