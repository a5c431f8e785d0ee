"""The door of a job: every check that needs the model and the data set, made before anything is queued.

Each check looks at one thing and yields the faults it finds; `CHECKS` lists them all. A fault points at the field of
the spec that must change and says what to change it to.
"""

from collections.abc import Callable
from typing import Any

from service.resolve.advice import advice
from service.resolve.cuts import check_cuts, check_embeddings, check_target
from service.resolve.data import check_baseline, check_head, check_labels, check_splits, check_task, check_tokenizer
from service.resolve.exports import check_exports
from service.resolve.order import Faults, Order, refusal
from service.resolve.settings import check_device, check_goals, check_lengths, check_nothing_runs, check_stride
from service.specs import Cut, JobSpec
from service.tables import Dataset, Model

__all__ = ["resolve"]

CHECKS: tuple[Callable[[Order], Faults], ...] = (
    check_task,
    check_head,
    check_baseline,
    check_splits,
    check_tokenizer,
    check_labels,
    check_cuts,
    check_embeddings,
    check_target,
    check_exports,
    check_lengths,
    check_stride,
    check_goals,
    check_device,
)
CHECKS_OF_UNKNOWN: tuple[Callable[[Order], Faults], ...] = (check_nothing_runs, check_cuts, check_exports)
"""Checks of a model whose network cannot be built."""


def resolve(
    spec: JobSpec, model: Model, dataset: Dataset | None, devices: list[str] | None = None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The configuration that is executed, every default filled in, and what the client should know.

    Raises `Invalid` with the code of the first fault and all faults as its errors.
    """
    order = Order(spec, model, dataset, devices)
    checks = CHECKS if order.family.known else CHECKS_OF_UNKNOWN
    faults = [fault for check in checks for fault in check(order)]
    if faults:
        raise refusal(faults)
    warnings = [{"code": code, "message": message} for code, message in dict.fromkeys(advice(order))]
    return _configuration(order), warnings


def _configuration(order: Order) -> dict[str, Any]:
    spec = order.spec
    configuration = spec.model_dump(mode="json")
    configuration["max_length"] = order.max_length
    configuration["benchmark"] = order.benchmark
    if spec.task == "question-answering" and order.max_length is not None:
        configuration["stride"] = spec.stride or max(1, order.max_length // 2)
    for cut, resolved in zip(spec.pruning.cuts, configuration["pruning"]["cuts"], strict=True):
        resolved["repair"] = _repairs(cut, order)
    return configuration


def _repairs(cut: Cut, order: Order) -> bool:
    """Whether what remains of a cut is corrected: by default wherever there are rows to do it by."""
    if cut.structure not in ("attention_heads", "ffn_neurons"):
        return False
    return order.can_score if cut.repair is None else cut.repair
