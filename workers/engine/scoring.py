"""Scoring: rows of the data set run through a network while criteria watch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.failures import EngineError
from workers.engine.recovery import TRAINING_COST
from workers.engine.tasks import Task

BATCH = 32


def read_rows(
    network: PreTrainedModel, criteria: Sequence[Criterion], task: Task, samples: int, advance: Callable[[int], None]
) -> None:
    """One reading of up to `samples` rows for all `criteria`, which need the same; `advance` gets forward passes."""
    needs = criteria[0].needs
    network.eval()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        # A gate's gradient does not need those of the weights, which are a third of the work.
        parameter.requires_grad_(needs == "gradients")
    samples, seen = task.sample_size(samples), 0
    for batch in task.sample(samples, BATCH):
        rows = task.size(batch)
        network.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(needs != "activations"):
            # The sum over rows, so that what reaches a row's gates is that row's own gradient.
            loss = task.loss(network, batch) * rows
        if loss.requires_grad:
            loss.backward()
        seen += rows
        for criterion in criteria:
            criterion.advance(seen / samples)
        advance(TRAINING_COST * rows)
    for parameter in trained:
        parameter.requires_grad_(True)
    network.zero_grad(set_to_none=True)


def finite(scores: list[Tensor]) -> list[Tensor]:
    """The scores; raises EngineError NOT_FINITE where the network is broken and its units cannot be told apart."""
    if not all(bool(values.isfinite().all()) for values in scores):
        raise EngineError("NOT_FINITE", "the network's scores are not finite: its weights are broken", blame="user")
    return scores
