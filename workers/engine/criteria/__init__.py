"""Criteria: what a unit is worth. The lowest scores are cut first."""

from collections.abc import Callable
from typing import Any

import torch

from workers.engine.criteria.activation import activation
from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.fisher import fisher
from workers.engine.criteria.gradient import Gradient
from workers.engine.criteria.magnitude import Magnitude
from workers.engine.criteria.movement import Movement
from workers.engine.criteria.random import Random
from workers.engine.criteria.regularization import Regularization
from workers.engine.criteria.second_order import SecondOrder
from workers.engine.criteria.similarity import similarity
from workers.engine.criteria.taylor import taylor
from workers.engine.structures.structure import Structure

CRITERIA: dict[str, Callable[[Any, Structure, torch.Generator], Criterion]] = {
    "magnitude": Magnitude,
    "gradient": Gradient,
    "taylor": taylor,
    "fisher": fisher,
    "movement": Movement,
    "regularization": Regularization,
    "activation": activation,
    "second_order": SecondOrder,
    "similarity": similarity,
    "random": Random,
}
"""`(spec of the criterion, structure, random generator of the job)` to a criterion.

Single weights by `activation` and `second_order` are not scored but solved block by block: see `layerwise`.
"""
