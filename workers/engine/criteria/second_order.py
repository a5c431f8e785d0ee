"""Optimal brain surgery by units (ZipLM: Kurtic et al., 2023), with errors in the unit of the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.engine.criteria.criterion import Criterion
from workers.engine.slicing import columns_of, matrix_of, rows_of
from workers.engine.structures.structure import Group

DAMPING = 1e-4
"""Added to the diagonal of a covariance, as a share of its mean."""
EVERY_TOKEN = 0.3
"""Weight of all tokens alike, beside that of tokens by their gradients: some hundred rows tell those apart poorly."""


class SecondOrder(Criterion):
    """What the loss is expected to rise by when units go one by one, the least harmful first, and the rest makes up.

    A unit is a run of inputs of an output projection W. With H the covariance of the inputs and G that of the gradients
    of the outputs, a change D of W costs tr(G D H Dᵀ) (the Fisher information in the form of Martens and Grosse, 2015).
    The best D for a unit that goes follows from the inverse of H; then W and the inverse are updated, and the next one
    is chosen. Tokens count by the size of their gradients, so that those which the task does not read are left out of
    the account. A score is the rise at which a unit went, never less than that of a unit which went before it.
    """

    needs = "gates"

    def attach(self, network: PreTrainedModel, groups: Sequence[Group]) -> None:
        """Watches inputs, outputs and their gradients at every output projection."""
        self._units = [group.units for group in groups]
        self._flows = [[_Flow(output) for output in group.outputs] for group in groups]
        self._handles: list[RemovableHandle] = [
            flow.projection.register_forward_hook(flow.hook()) for flows in self._flows for flow in flows
        ]

    @torch.no_grad()
    def scores(self) -> list[Tensor]:
        """Removes units one after another; stops watching. Not a number where gradients are none."""
        for handle in self._handles:
            handle.remove()
        found = [
            _removal([_Surgeon.of(flow, units) for flow in flows], units)
            if all(bool(flow.squares.isfinite()) for flow in flows)
            else torch.full((units,), torch.nan)
            for units, flows in zip(self._units, self._flows, strict=True)
        ]
        self._flows = []
        return found


class _Flow:
    """Sums over the tokens at one projection: x xᵀ, the same by squared gradient, g gᵀ, |g|² and the tokens."""

    def __init__(self, projection: nn.Module) -> None:
        self.projection = projection
        inputs, outputs, device = columns_of(projection), rows_of(projection), matrix_of(projection).device
        self.plain, self.weighted = torch.zeros(2, inputs, inputs, device=device)
        self.gradients = torch.zeros(outputs, outputs, device=device)
        self.squares = torch.zeros((), device=device)
        self.tokens = torch.zeros((), device=device)

    def hook(self) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        """Forward hook that has the output's gradient told to `add`."""

        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            inputs = args[0].detach().flatten(0, -2).float()
            output = output if output.requires_grad else output.requires_grad_()
            output.register_hook(lambda gradient: self.add(inputs, gradient.flatten(0, -2).float()))
            return output

        return see

    def add(self, inputs: Tensor, gradient: Tensor) -> None:
        """Inputs (tokens, features) and gradients (tokens, outputs); those without one are padding or not read."""
        squares = gradient.square().sum(1)
        read = squares != 0  # what is not a number stays, to be found
        inputs, gradient, squares = inputs[read], gradient[read], squares[read]
        self.plain.addmm_(inputs.T, inputs)
        self.weighted.addmm_(inputs.T, inputs * squares[:, None])
        self.gradients.addmm_(gradient.T, gradient)
        self.squares += squares.sum()
        self.tokens += len(squares)


@dataclass
class _Surgeon:
    """One projection under repeated removal."""

    root: Tensor
    """L W with G = Lᵀ L: (outputs, inputs)."""
    inverse: Tensor
    """Of H; rows and columns of what is gone are those of the identity."""
    size: int
    """Inputs per unit."""

    @classmethod
    def of(cls, flow: _Flow, units: int) -> "_Surgeon":
        """The state before the first removal; in double precision until the inverse is there."""
        mean = flow.squares / flow.tokens.clamp_min(1)
        covariance = ((1 - EVERY_TOKEN) * flow.weighted + EVERY_TOKEN * mean * flow.plain).double()
        covariance.diagonal().add_(DAMPING * covariance.diagonal().mean().clamp_min(1e-30))
        importance = (flow.gradients / flow.squares.clamp_min(1e-30)).double()
        importance.diagonal().add_(DAMPING * importance.diagonal().mean().clamp_min(1e-30))
        root = torch.linalg.cholesky(importance).T @ matrix_of(flow.projection).detach().double()
        # Scaled to a mean diagonal of one, so that single precision does for the updates.
        scale = covariance.diagonal().mean()
        inverse = torch.linalg.inv(covariance / scale)
        return cls((root * scale.sqrt()).float(), inverse.float(), len(inverse) // units)

    def blocks(self) -> Tensor:
        """Inverses of the units' own blocks of the inverse: (units, size, size)."""
        units = len(self.inverse) // self.size
        if self.size == 1:
            return self.inverse.diagonal().clamp_min(1e-12).reciprocal().view(units, 1, 1)
        grid = self.inverse.view(units, self.size, units, self.size)
        # One by one: in a batch, MKL's LU on several threads fails for blocks of some 180 rows and more.
        return torch.stack([torch.linalg.inv(block) for block in grid.diagonal(dim1=0, dim2=2).unbind(-1)])

    def errors(self) -> Tensor:
        """What each unit's removal costs now: (units,)."""
        if self.size == 1:
            return self.root.square().sum(0) * self.blocks().flatten()
        columns = self.root.unflatten(1, (-1, self.size)).movedim(1, 0)
        found: Tensor = (columns.mT @ columns * self.blocks()).sum((1, 2))
        return found

    def remove(self, unit: int) -> None:
        """Takes a unit away and updates what is left."""
        run = slice(unit * self.size, (unit + 1) * self.size)
        block = torch.linalg.inv(self.inverse[run, run])
        step = block @ self.inverse[run]
        self.root.addmm_(self.root[:, run].clone(), step, alpha=-1)
        self.inverse.addmm_(self.inverse[:, run].clone(), step, alpha=-1)
        self.root[:, run] = 0
        self.inverse[run], self.inverse[:, run] = 0, 0
        self.inverse[run, run] = torch.eye(self.size, device=self.inverse.device)


def _removal(surgeons: list[_Surgeon], units: int) -> Tensor:
    """Scores of (units,): the error added by each, in the order of removal, as a running maximum."""
    scores, highest = torch.zeros(units), 0.0
    gone = torch.zeros(units, dtype=torch.bool)
    for _ in range(units):
        errors = torch.stack([surgeon.errors().cpu() for surgeon in surgeons]).sum(0)
        unit = int(errors.masked_fill(gone, torch.inf).argmin())
        highest = max(highest, float(errors[unit]))
        scores[unit], gone[unit] = highest, True
        for surgeon in surgeons:
            surgeon.remove(unit)
    return scores
