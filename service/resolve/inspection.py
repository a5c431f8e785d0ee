"""The door of an inspection: it is checked as the jobs that would make the cuts which it tries."""

from collections.abc import Iterator
from typing import Any

from service.catalog import family_of
from service.resolve.cuts import check_cuts
from service.resolve.data import HEADLESS, check_head, check_labels, check_splits, check_task, check_tokenizer
from service.resolve.order import Fault, Faults, Order, refusal
from service.resolve.settings import check_device, check_lengths, check_nothing_runs
from service.specs import CRITERIA_OF, Cut, Magnitude, StructureName, TaskName
from service.specs.criteria import Fisher, Similarity, Taylor
from service.specs.inspection import Inspection, InspectionSpec, Scoring
from service.tables import Dataset, Model

CHECKS = (check_task, check_head, check_splits, check_tokenizer, check_labels, check_cuts, check_lengths, check_device)
CHECKS_OF_UNKNOWN = (check_nothing_runs, check_cuts)
"""Checks of a model whose network cannot be built."""

_STRUCTURES: tuple[StructureName, ...] = ("attention_heads", "ffn_neurons", "layers", "weights")
_READING: tuple[Scoring, ...] = (
    Magnitude(kind="magnitude"),
    Taylor(kind="taylor"),
    Fisher(kind="fisher"),
    Similarity(kind="similarity"),
)
"""What is inspected, and how, where nothing else is asked for; without rows only the first."""


def resolve_inspection(
    spec: InspectionSpec, model: Model, dataset: Dataset | None, devices: list[str] | None = None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The configuration that is executed, every default filled in, and what the client should know.

    Raises `Invalid` with the code of the first fault and all faults as its errors.
    """
    whole = _complete(spec, model, dataset)
    faults = list(dict.fromkeys(_faults(whole, model, dataset, devices)))
    if faults:
        raise refusal(faults)
    order = Order(whole.as_job(whole.cuts[0]), model, dataset, devices)
    configuration = whole.model_dump(mode="json") | {"max_length": order.max_length}
    return configuration, [{"code": code, "message": message} for code, message in _advice(order)]


def _complete(spec: InspectionSpec, model: Model, dataset: Dataset | None) -> Inspection:
    family = family_of(model.family)
    readable = family.known and dataset is not None and not {"train", "calibration"}.isdisjoint(dataset.splits)
    structures = spec.structures or [name for name in _STRUCTURES if name in family.structures]
    scoring = set().union(*(CRITERIA_OF[name] for name in structures))
    criteria = spec.criteria or [c for c in (_READING if readable else _READING[:1]) if c.kind in scoring]
    return Inspection(
        **spec.model_dump(exclude={"task", "structures", "criteria", "baseline"}),
        model_id=model.id,
        task=spec.task or _task_of(spec, model, dataset),
        baseline=spec.baseline,
        structures=structures,
        criteria=criteria,
    )


def _task_of(spec: InspectionSpec, model: Model, dataset: Dataset | None) -> TaskName | None:
    """The task of the model's own head, or of the rows that a new one is trained on; without any the encoder's own."""
    family = family_of(model.family)
    task: Any = model.task
    if spec.baseline is not None and dataset is not None:
        task = dataset.task
    elif HEADLESS in family.tasks and not (model.task in family.tasks and model.facts["has_head"]):
        task = HEADLESS
    found: TaskName | None = task
    return found


def _faults(whole: Inspection, model: Model, dataset: Dataset | None, devices: list[str] | None) -> Faults:
    cuts = whole.cuts
    for index, criterion in enumerate(whole.criteria):
        if criterion.kind not in {cut.kind for cut in cuts}:
            detail = f"{criterion.kind} gives none of the structures a score: {', '.join(whole.structures)}."
            yield Fault("CRITERION_NOT_SUPPORTED", f"/criteria/{index}", detail)
    yield from _check_embeddings(whole, dataset)
    for cut in cuts:
        order = Order(whole.as_job(cut), model, dataset, devices)
        for check in CHECKS if order.family.known else CHECKS_OF_UNKNOWN:
            yield from (_placed(fault, whole, cut) for fault in check(order) if fault.code != "CUT_REMOVES_NOTHING")


def _check_embeddings(whole: Inspection, dataset: Dataset | None) -> Faults:
    """Texts without partners are judged by the whole network's embeddings, which narrower ones are no match for."""
    if whole.task != HEADLESS or dataset is None or (dataset.labels or {}).get("pairs"):
        return
    if "hidden_size" in whole.structures:
        detail = "Texts alone cannot tell what narrower embeddings are worth; give pairs, or leave hidden_size out."
        yield Fault("STRUCTURE_NOT_SUPPORTED", f"/structures/{whole.structures.index('hidden_size')}", detail)


def _placed(fault: Fault, whole: Inspection, cut: Cut) -> Fault:
    """The fault with names of the inspection's fields in place of those of the job."""
    kinds = [criterion.kind for criterion in whole.criteria]
    names = {
        "/pruning/cuts/0/criterion": f"/criteria/{kinds.index(cut.kind)}" if cut.kind in kinds else "/criteria",
        "/pruning/cuts/0/structure": f"/structures/{whole.structures.index(cut.structure)}",
    }
    pointer, detail = fault.pointer, fault.detail
    for old, new in names.items():
        pointer, detail = pointer.replace(old, new), detail.replace(old, new)
    return Fault(fault.code, pointer, detail)


def _advice(order: Order) -> Iterator[tuple[str, str]]:
    if not order.family.known:
        yield "NETWORK_NOT_RUN", f"{order.family.model_type} is not known here: only weights near zero are counted."
    elif order.dataset is None:
        yield "LOSS_NOT_MEASURED", "Without a data set the scores are told, but not what cutting costs."
