"""Methods: how the new weights of one matrix are found, from the old and from what flows through it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from service.specs import N_OF_M, Cut
from workers.engine.solvers.outliers import SPREAD
from workers.engine.solvers.sparsegpt import COLUMNS, refit, sparsegpt
from workers.engine.solvers.wanda import keep_mask, wanda_scores


@dataclass(frozen=True)
class Method(ABC):
    """What methods share: how much is cut, and in how many steps what stays is refitted by least squares (0: not)."""

    share: float = 0.5
    pattern: tuple[int, int] | None = None
    side: int | None = None
    refit_steps: int = 10
    spread: float = 0.0
    """How far shares of blocks may lie from their mean, by the outliers of each; 0 for the same share everywhere."""

    @property
    @abstractmethod
    def pairs(self) -> bool:
        """Whether it needs X^T X rather than its diagonal alone, which is far cheaper."""

    @abstractmethod
    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """New weights (outputs, inputs), float32, from the old and X^T X (inputs, inputs) or its diagonal (inputs,)."""

    @property
    def ranks_blocks(self) -> bool:
        """Whether some blocks lose more than others; N of M neighbours are the same number everywhere."""
        return self.spread > 0 and self.pattern is None

    def with_share(self, share: float) -> "Method":
        """The same with another share."""
        return replace(self, share=share)


class Wanda(Method):
    """Cuts by activation (Sun et al., 2024)."""

    @property
    def pairs(self) -> bool:
        """Only the refit needs them."""
        return self.refit_steps > 0

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The new weights."""
        squares = statistic.diagonal() if self.pairs else statistic
        cut = weight * keep_mask(wanda_scores(weight, squares), self.share, self.pattern, self.side)
        return refit(cut, weight, statistic, steps=self.refit_steps) if self.pairs else cut


class SparseGpt(Method):
    """Cuts by second order (Frantar and Alistarh, 2023)."""

    @property
    def pairs(self) -> bool:
        """Always."""
        return True

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The new weights."""
        columns = columns_together(self.side or 1)
        cut = sparsegpt(weight, statistic, share=self.share, pattern=self.pattern, side=self.side, block_size=columns)
        return refit(cut, weight, statistic, steps=self.refit_steps) if self.refit_steps else cut


def columns_together(side: int) -> int:
    """How many columns SparseGPT takes at a time: the usual number, or as much of it as squares of `side` fill."""
    return max(side, COLUMNS - COLUMNS % side)


METHODS: dict[str, type[Method]] = {"activation": Wanda, "second_order": SparseGpt}
"""How single weights are solved block by block, by criterion."""


def method_of(cut: Cut, share: float) -> Method:
    """The method of a cut of single weights, which is to cut `share` of them; scope global spreads it over blocks."""
    return METHODS[cut.kind](
        share=share,
        pattern=N_OF_M.get(cut.pattern or ""),
        side=cut.block_size if cut.pattern == "block" else None,
        spread=SPREAD if cut.scope == "global" else 0.0,
    )
