"""Criteria: what scores the units of a structure. One class each, and which structure takes which."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from service.specs.part import Part

Samples: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000, description="rows of train that are read")]
Epochs: TypeAlias = Annotated[int, Field(ge=1, le=100, description="epochs over train before the cut")]
Penalty: TypeAlias = Literal["l1", "l2", "group_lasso"]
Strength: TypeAlias = Annotated[float, Field(gt=0, le=100, description="factor of the penalty in the loss")]


class Magnitude(Part):
    """Norm of a unit's weights; the smallest are cut (Han et al., 2015; Li et al., 2017)."""

    kind: Literal["magnitude"]
    norm: Literal[1, 2] = 1


class Gradient(Part):
    """Norm of the loss gradient of a unit's weights; the least sensitive are cut."""

    kind: Literal["gradient"]
    samples: Samples = 512


class Taylor(Part):
    """First-order estimate of the loss change when a unit is removed (Molchanov et al., 2019)."""

    kind: Literal["taylor"]
    samples: Samples = 512


class Fisher(Part):
    """Second-order estimate of the loss change by the diagonal of the Fisher information (Kwon et al., 2022)."""

    kind: Literal["fisher"]
    samples: Samples = 512


class Movement(Part):
    """Units whose weights shrink while the network is fine-tuned are cut (Sanh et al., 2020)."""

    kind: Literal["movement"]
    epochs: Epochs = 1


class Regularization(Part):
    """Trains under a penalty that pulls units to zero, then cuts the smallest (Tibshirani, 1996; Yuan and Lin, 2006).

    With `threshold` everything whose root mean square fell to it or below is cut, and no ratio is needed.
    """

    kind: Literal["regularization"]
    penalty: Penalty = "group_lasso"
    strength: Strength = 1e-4
    threshold: float | None = Field(None, ge=0, description="cut at or below it; default: the smallest up to ratio")
    epochs: Epochs = 1


class Activation(Part):
    """Weights times the norm of what they are fed with (Wanda: Sun et al., 2024)."""

    kind: Literal["activation"]
    samples: Samples = 512


class SecondOrder(Part):
    """Optimal brain surgery with the covariance of the inputs (SparseGPT: Frantar and Alistarh, 2023; ZipLM: Kurtic
    et al., 2023); what remains is corrected for what goes."""

    kind: Literal["second_order"]
    samples: Samples = 512


class Similarity(Part):
    """Block influence: one minus the cosine of the states before and after a layer (Men et al., 2024), or before and
    after what its attention or its feed-forward part adds (He et al., 2024)."""

    kind: Literal["similarity"]
    samples: Samples = 512


class Random(Part):
    """Units cut by chance under the job's seed: the control that every criterion must beat."""

    kind: Literal["random"]


Criterion: TypeAlias = Annotated[
    Magnitude | Gradient | Taylor | Fisher | Movement | Regularization | Activation | SecondOrder | Similarity | Random,
    Field(discriminator="kind"),
]

_ANY = {"magnitude", "gradient", "taylor", "fisher", "random"}
_LINKED = _ANY | {"movement", "regularization", "activation", "second_order"}
CRITERIA_OF: dict[str, frozenset[str]] = {
    "attention_heads": frozenset(_LINKED),
    "ffn_neurons": frozenset(_LINKED),
    "layers": frozenset(_ANY | {"similarity"}),
    "attention_layers": frozenset(_ANY | {"similarity"}),
    "ffn_layers": frozenset(_ANY | {"similarity"}),
    "hidden_size": frozenset(_ANY | {"activation"}),
    "vocabulary": frozenset(),
    "weights": frozenset(_LINKED),
}
"""Which criterion can score the units of which structure; the vocabulary is cut by use, not by a score."""

TRAINING_CRITERIA = frozenset({"movement", "regularization"})
"""Criteria that fine-tune the network before they score."""

DATA_CRITERIA = TRAINING_CRITERIA | {"gradient", "taylor", "fisher", "activation", "second_order", "similarity"}
"""Criteria that run the network over rows of the data set."""
