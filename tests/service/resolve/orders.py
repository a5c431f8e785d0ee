"""Orders that tests start from, and what the door says to them."""

from typing import Any

import pytest

from service.errors import Invalid
from service.resolve import resolve
from service.specs import JobSpec
from service.tables import Dataset, Model
from tests.service.samples import a_spec

SPLIT = {"rows": 8, "size": 100, "sha256": "0" * 64}
TAYLOR = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}}
HEADS = {"structure": "attention_heads", "ratio": 0.5, "criterion": {"kind": "random"}}
NEURONS = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}
LAYERS = {"structure": "layers", "ratio": 0.5, "criterion": {"kind": "random"}}
ATTENTIONS = {"structure": "attention_layers", "ratio": 0.5, "criterion": {"kind": "random"}}
FFNS = {"structure": "ffn_layers", "ratio": 0.5, "criterion": {"kind": "random"}}
HIDDEN = {"structure": "hidden_size", "ratio": 0.5, "criterion": {"kind": "random"}}
WEIGHTS = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
VOCABULARY = {"structure": "vocabulary"}
BASELINE = {"epochs": 1}


def a_job_spec(model: Model, dataset: Dataset | None = None, **changes: Any) -> JobSpec:
    """A spec for a model's own task; `cuts` stands for those of `pruning`."""
    given: dict[str, Any] = {"task": model.task or "text-classification"}
    if dataset is not None:
        given["dataset_id"] = "ds_" + "0" * 26
    if "cuts" in changes:
        given["pruning"] = {"cuts": changes.pop("cuts")}
    return JobSpec.model_validate(a_spec(**{**given, **changes}))


def resolved(model: Model, dataset: Dataset | None = None, **changes: Any) -> dict[str, Any]:
    """The configuration of an order that is taken."""
    return resolve(a_job_spec(model, dataset, **changes), model, dataset)[0]


def warned(model: Model, dataset: Dataset | None = None, **changes: Any) -> list[str]:
    """Codes of the warnings about an order that is taken."""
    return [warning["code"] for warning in resolve(a_job_spec(model, dataset, **changes), model, dataset)[1]]


def refused(model: Model, dataset: Dataset | None = None, **changes: Any) -> Invalid:
    """The refusal of an order that is not."""
    with pytest.raises(Invalid) as caught:
        resolve(a_job_spec(model, dataset, **changes), model, dataset)
    assert all(error.detail.endswith(".") for error in caught.value.errors)
    return caught.value


def faults(model: Model, dataset: Dataset | None = None, **changes: Any) -> tuple[str, list[str]]:
    """The code of a refusal and the fields it points at."""
    error = refused(model, dataset, **changes)
    return error.code, [fault.pointer for fault in error.errors]
