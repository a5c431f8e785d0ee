"""The door of a job: every check that needs the model and the data set, made before anything is queued.

Each check looks at one thing and yields the faults it finds; `CHECKS` lists them all. A fault points at the field of
the spec that must change and says what to change it to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from service.catalog import FAMILIES
from service.errors import FieldError, Invalid
from service.specs import DATA_CRITERIA, QUALITY_METRICS, Gradual, JobSpec, LatencyGoal, QualityGoal
from service.tables import Dataset, Model

DEFAULT_MAX_LENGTH = 128
_EXPORT_OF = {"onnxruntime": "onnx", "onnxruntime_int8": "onnx_int8"}


@dataclass(frozen=True)
class Order:
    """A spec and what it is about."""

    spec: JobSpec
    model: Model
    dataset: Dataset | None
    devices: list[str] | None
    """Kinds of device that live workers offer; None while no worker is known."""

    @property
    def uses_data(self) -> bool:
        """Whether rows are read, because a part needs them or because a data set is there to measure on."""
        return self.spec.needs_data or self.dataset is not None

    @property
    def longest(self) -> int:
        """The model's limit in tokens."""
        return int(self.model.facts["max_length"])


@dataclass(frozen=True)
class Fault:
    """One reason why an order cannot work."""

    code: str
    pointer: str
    detail: str


Faults = Iterator[Fault]


def resolve(
    spec: JobSpec, model: Model, dataset: Dataset | None, devices: list[str] | None = None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The configuration that is executed, every default filled in, and what the client should know.

    Raises `Invalid` with the code of the first fault and all faults as its errors.
    """
    order = Order(spec, model, dataset, devices)
    faults = [fault for check in CHECKS for fault in check(order)]
    if faults:
        errors = tuple(FieldError(fault.pointer, fault.detail) for fault in faults)
        raise Invalid(faults[0].detail, code=faults[0].code, errors=errors)
    configuration = spec.model_dump(mode="json")
    configuration["max_length"] = spec.max_length or min(DEFAULT_MAX_LENGTH, order.longest)
    configuration["benchmark"] = _benchmark(order)
    return configuration, [{"code": code, "message": message} for code, message in dict.fromkeys(_warnings(order))]


def _benchmark(order: Order) -> dict[str, Any] | None:
    spec = order.spec
    if spec.benchmark is None or (not order.uses_data and "benchmark" not in spec.model_fields_set):
        return None
    length = min(spec.benchmark.sequence_length, order.longest)
    return {**spec.benchmark.model_dump(mode="json"), "sequence_length": length}


def _check_task(order: Order) -> Faults:
    spec, model = order.spec, order.model
    if model.task not in (None, "", spec.task):
        yield Fault("TASK_MISMATCH", "/task", f"The model's head is for {model.task}.")
    if order.dataset is not None and order.dataset.task != spec.task:
        yield Fault("TASK_MISMATCH", "/dataset_id", f"The data set is for {order.dataset.task}, not {spec.task}.")


def _check_head(order: Order) -> Faults:
    if not order.model.facts["has_head"] and order.spec.baseline is None:
        yield Fault(
            "BASELINE_REQUIRED",
            "/baseline",
            "The model has no trained head for this task; give `baseline` so that one is trained first.",
        )


def _check_data(order: Order) -> Faults:
    spec, dataset = order.spec, order.dataset
    if dataset is None:
        if needing := ", ".join(_needing_data(spec)):
            yield Fault("DATASET_REQUIRED", "/dataset_id", f"A data set is needed by {needing}.")
        return
    splits = dataset.splits
    if "train" not in splits and (training := [name for name in ("baseline", "finetuning") if getattr(spec, name)]):
        yield Fault("SPLIT_MISSING", "/dataset_id", f"The data set has no train split, which {training[0]} needs.")
    elif not splits.keys() & {"train", "calibration"} and (scoring := _scoring_by_data(spec)):
        yield Fault("SPLIT_MISSING", "/dataset_id", f"No train or calibration split, which {scoring[0]} reads.")
    if not splits.keys() & {"train", "validation", "test"} and (goals := _quality_goals(spec)):
        yield Fault("SPLIT_MISSING", "/dataset_id", f"No test or validation split, which {goals[0]} is measured on.")


def _check_tokenizer(order: Order) -> Faults:
    if order.uses_data and not order.model.facts["has_tokenizer"]:
        yield Fault(
            "TOKENIZER_REQUIRED", "/model_id", "The model came without tokenizer files, so no text can be read."
        )


def _check_labels(order: Order) -> Faults:
    """With `baseline` labels that do not fit get a new head; without, the model's own head must know them."""
    known, given = order.model.facts["labels"], order.dataset.labels if order.dataset else None
    if order.spec.baseline is not None or known is None or given is None:
        return
    if set(given.get("names") or ()) - set(known):
        detail = "The data set has labels that the model's id2label does not name; give `baseline` to train a new head."
        yield Fault("LABELS_MISMATCH", "/dataset_id", detail)
    highest = given.get("integers")
    if highest is not None and highest >= len(known):
        detail = f"Labels go up to {highest}, but the model's head has {len(known)}; give `baseline` for a new head."
        yield Fault("LABELS_MISMATCH", "/dataset_id", detail)


def _check_cuts(order: Order) -> Faults:
    supported = FAMILIES[order.model.family].structures
    for index, cut in enumerate(order.spec.pruning.cuts):
        at = f"/pruning/cuts/{index}"
        if cut.structure not in supported:
            yield Fault("STRUCTURE_NOT_SUPPORTED", f"{at}/structure", f"{order.model.family} can lose {supported}.")
        elif cut.structure != "weights" and not _removes_something(order.model, cut.structure, cut.share, cut.scope):
            detail = f"So small a share of the {cut.structure} of this model rounds to none; raise the ratio."
            yield Fault("CUT_REMOVES_NOTHING", f"{at}/ratio", detail)


def _removes_something(model: Model, structure: str, share: float, scope: str) -> bool:
    """Whether a share, rounded to the nearest, is at least one unit and leaves one behind, anywhere."""
    if structure == "layers":
        groups = [int(model.structure["layers"])]
    else:
        sizes = model.structure["attention_heads" if structure == "attention_heads" else "ffn_width"]
        groups = [int(size) for size in sizes]
    if scope == "global":
        return int(sum(groups) * share + 0.5) > 0 and any(size > 1 for size in groups)
    return any(size > 1 and int(size * share + 0.5) > 0 for size in groups)


def _check_exports(order: Order) -> Faults:
    spec, family = order.spec, FAMILIES[order.model.family]
    for index, export in enumerate(spec.exports):
        at = f"/exports/{index}"
        if export not in family.exports:
            yield Fault("EXPORT_NOT_SUPPORTED", at, f"{order.model.family} exports to {', '.join(family.exports)}.")
        elif export == "huggingface" and (reason := _why_not_stock(order, family.stock_structures)):
            yield Fault("EXPORT_NOT_EXPRESSIBLE", at, f"{reason}; use huggingface_custom or onnx.")


def _why_not_stock(order: Order, stock_structures: tuple[str, ...]) -> str | None:
    if not order.model.facts["uniform"]:
        return "The model's layers already differ in size, which a stock config cannot express"
    for index, cut in enumerate(order.spec.pruning.cuts):
        if cut.structure not in stock_structures:
            return f"/pruning/cuts/{index} cuts {cut.structure}, which a stock config of this family cannot express"
        if cut.structure == "ffn_neurons" and cut.scope == "global":
            return f"/pruning/cuts/{index} has scope global, so widths will differ, which no stock config can express"
    return None


def _check_lengths(order: Order) -> Faults:
    spec, longest = order.spec, order.longest
    if spec.max_length is not None and spec.max_length > longest:
        yield Fault("TOO_LONG", "/max_length", f"The model reads at most {longest} tokens.")
    benchmark = spec.benchmark
    explicit = benchmark is not None and "sequence_length" in benchmark.model_fields_set
    if benchmark is not None and explicit and benchmark.sequence_length > longest:
        yield Fault("TOO_LONG", "/benchmark/sequence_length", f"The model reads at most {longest} tokens.")


def _check_goals(order: Order) -> Faults:
    benchmark, exports = _benchmark(order), order.spec.exports
    for index, goal in enumerate(order.spec.acceptance):
        at = f"/acceptance/{index}"
        if isinstance(goal, QualityGoal) and goal.metric not in QUALITY_METRICS[order.spec.task]:
            yield Fault("METRIC_NOT_MEASURED", f"{at}/metric", f"{order.spec.task} does not measure {goal.metric}.")
        if not isinstance(goal, LatencyGoal):
            continue
        needed = _EXPORT_OF.get(goal.runtime)
        if benchmark is None:
            detail = "Latency is measured by the benchmark, which is off; give `benchmark`."
            yield Fault("BENCHMARK_REQUIRED", at, detail)
        elif goal.batch_size is not None and goal.batch_size not in benchmark["batch_sizes"]:
            yield Fault("BATCH_SIZE_NOT_MEASURED", f"{at}/batch_size", "The benchmark does not measure it; add it.")
        if needed is not None and needed not in exports:
            detail = f"Latency in {goal.runtime} is measured only with the export {needed}; add it or name torch."
            yield Fault("RUNTIME_NOT_EXPORTED", f"{at}/runtime", detail)


def _check_device(order: Order) -> Faults:
    if order.spec.device == "cuda" and order.devices is not None and "cuda" not in order.devices:
        yield Fault("DEVICE_NOT_AVAILABLE", "/device", "No worker has a CUDA device now; use auto or cpu.")


CHECKS: tuple[Callable[[Order], Faults], ...] = (
    _check_task,
    _check_head,
    _check_data,
    _check_tokenizer,
    _check_labels,
    _check_cuts,
    _check_exports,
    _check_lengths,
    _check_goals,
    _check_device,
)


def _needing_data(spec: JobSpec) -> list[str]:
    training = [f"/{name}" for name in ("baseline", "finetuning") if getattr(spec, name) is not None]
    return [*training, *_scoring_by_data(spec), *_quality_goals(spec)]


def _scoring_by_data(spec: JobSpec) -> list[str]:
    cuts = enumerate(spec.pruning.cuts)
    return [f"/pruning/cuts/{index}/criterion" for index, cut in cuts if cut.criterion.kind in DATA_CRITERIA]


def _quality_goals(spec: JobSpec) -> list[str]:
    goals = enumerate(spec.acceptance)
    return [f"/acceptance/{index}" for index, goal in goals if isinstance(goal, QualityGoal)]


def _warnings(order: Order) -> Iterator[tuple[str, str]]:
    spec, schedule = order.spec, order.spec.pruning.schedule
    if isinstance(schedule, Gradual):
        if spec.finetuning is None:
            yield "FINETUNING_MISSING", "A gradual schedule without finetuning cuts in rounds but recovers in none."
        elif schedule.rounds > spec.finetuning.epochs:
            yield "ROUNDS_EXCEED_EPOCHS", "There are more rounds than epochs: the first rounds are not fine-tuned."
    for cut in spec.pruning.cuts:
        if cut.structure != "weights" and cut.criterion.kind == "magnitude":
            yield "MAGNITUDE_WEAK", f"magnitude is a weak guide for {cut.structure}; taylor keeps more quality."
        if cut.structure == "weights":
            yield "SPARSITY_NOT_FASTER", "Single weights that are zero make the network neither smaller nor faster."
    splits = order.dataset.splits if order.dataset is not None else None
    if splits is not None and not splits.keys() & {"train", "validation", "test"}:
        yield "QUALITY_NOT_MEASURED", "The data set has no split to measure quality on."
