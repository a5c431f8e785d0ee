"""Diagonal of the empirical Fisher information (Kwon et al., 2022; for single weights Theis et al., 2018)."""

import torch

from service.specs import Criterion as CriterionSpec
from workers.engine.criteria.criterion import Criterion
from workers.engine.criteria.taylor import Taylor, WeightTaylor
from workers.engine.structures.structure import Structure


class Fisher(Taylor):
    """Second-order estimate of what closing a unit's gate costs: the square of the gate's gradient, row by row."""

    size = staticmethod(torch.square)


class WeightFisher(WeightTaylor):
    """The same for single weights: the square of weight times gradient, summed over batches."""

    size = staticmethod(torch.square)


def fisher(spec: CriterionSpec, structure: Structure, generator: torch.Generator) -> Criterion:
    """The form that fits the structure: a gate for every single weight would cost a gradient per row and weight."""
    form = WeightFisher if structure.name == "weights" else Fisher
    return form(spec, structure, generator)
