"""How a network is trained."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.specs.criteria import Penalty, Strength
from service.specs.part import Part


class AdamW(Part):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]
    weight_decay: float = Field(0.01, ge=0, le=1)


class Sgd(Part):
    """Stochastic gradient descent, optionally with (Nesterov) momentum."""

    kind: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0")
        return self


Optimizer: TypeAlias = Annotated[AdamW | Sgd, Field(discriminator="kind")]


class Distillation(Part):
    """Learn the softened outputs of the `before` network too (Hinton et al., 2015)."""

    temperature: float = Field(2.0, gt=0, le=100)
    weight: float = Field(0.5, gt=0, le=1, description="of the distillation loss against the task's own")


class Regularizer(Part):
    """A penalty on the weights of the transformer layers that is added to the loss."""

    kind: Penalty
    strength: Strength = 1e-4


class Training(Part):
    """Epochs over `train` with warm-up and decay; the best epoch on `validation` is kept."""

    epochs: int = Field(ge=1, le=1000)
    learning_rate: float = Field(5e-5, gt=0, le=10)
    batch_size: int = Field(32, ge=1, le=4096)
    optimizer: Optimizer = AdamW(kind="adamw")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps that the learning rate rises")
    decay: Literal["linear", "cosine", "constant"] = "linear"


class Finetuning(Training):
    """Training of the pruned network; `epochs` is the total over all rounds."""

    regularization: Regularizer | None = None
    distillation: Distillation | None = None
