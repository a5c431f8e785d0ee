"""Do the numbers of the spec fit the model, the task and the workers?"""

from service.resolve.order import Fault, Faults, Order
from service.specs import QUALITY_METRICS, LatencyGoal, QualityGoal

_EXPORT_OF = {"onnxruntime": "onnx", "onnxruntime_int8": "onnx_int8"}


def check_lengths(order: Order) -> Faults:
    """Texts are no longer than the model reads."""
    spec, longest = order.spec, order.longest or 0
    if spec.max_length is not None and spec.max_length > longest:
        yield Fault("TOO_LONG", "/max_length", f"The model reads at most {longest} tokens.")
    benchmark = spec.benchmark
    explicit = benchmark is not None and "sequence_length" in benchmark.model_fields_set
    if benchmark is not None and explicit and benchmark.sequence_length > longest:
        yield Fault("TOO_LONG", "/benchmark/sequence_length", f"The model reads at most {longest} tokens.")


def check_stride(order: Order) -> Faults:
    """Only question answering slides windows over a text, and they must move on."""
    stride, max_length = order.spec.stride, order.max_length
    if stride is None:
        return
    if order.spec.task != "question-answering":
        yield Fault("STRIDE_NOT_USED", "/stride", "Only question answering slides windows; leave stride out.")
    elif max_length is not None and stride >= max_length:
        yield Fault("TOO_LONG", "/stride", f"Windows of {max_length} tokens must overlap by fewer than that.")


def check_goals(order: Order) -> Faults:
    """Every goal is about something that is measured."""
    for index, goal in enumerate(order.spec.acceptance):
        at = f"/acceptance/{index}"
        if isinstance(goal, QualityGoal):
            yield from _check_quality(order, goal, at)
        elif isinstance(goal, LatencyGoal):
            yield from _check_latency(order, goal, at)


def _check_quality(order: Order, goal: QualityGoal, at: str) -> Faults:
    measured, rows = QUALITY_METRICS[order.spec.task], order.dataset
    if goal.metric not in measured:
        detail = f"{order.spec.task} does not measure {goal.metric}; it measures {', '.join(measured)}."
        yield Fault("METRIC_NOT_MEASURED", f"{at}/metric", detail)
    elif goal.metric == "spearman" and rows is not None and not (rows.labels or {}).get("scores"):
        detail = "spearman compares with the rows' score, which this data set lacks; name agreement."
        yield Fault("METRIC_NOT_MEASURED", f"{at}/metric", detail)


def _check_latency(order: Order, goal: LatencyGoal, at: str) -> Faults:
    benchmark, needed = order.benchmark, _EXPORT_OF.get(goal.runtime)
    if benchmark is None:
        detail = "Latency is measured by the benchmark, which is off; give `benchmark`."
        yield Fault("BENCHMARK_REQUIRED", at, detail)
    elif goal.batch_size is not None and goal.batch_size not in benchmark["batch_sizes"]:
        yield Fault("BATCH_SIZE_NOT_MEASURED", f"{at}/batch_size", "The benchmark does not measure it; add it.")
    if needed is not None and needed not in order.spec.exports:
        detail = f"Latency in {goal.runtime} is measured only with the export {needed}; add it or name torch."
        yield Fault("RUNTIME_NOT_EXPORTED", f"{at}/runtime", detail)


def check_device(order: Order) -> Faults:
    """Some worker has the device."""
    if order.spec.device == "cuda" and order.devices is not None and "cuda" not in order.devices:
        yield Fault("DEVICE_NOT_AVAILABLE", "/device", "No worker has a CUDA device now; use auto or cpu.")


def check_nothing_runs(order: Order) -> Faults:
    """A network that cannot be built is neither trained nor measured; only its tensors are cut."""
    spec = order.spec
    asked = {
        "/dataset_id": spec.dataset_id is not None,
        "/baseline": spec.baseline is not None,
        "/finetuning": spec.finetuning is not None,
        "/pruning/target": spec.pruning.target is not None,
        "/pruning/schedule": spec.pruning.schedule.kind != "one_shot",
        "/benchmark": spec.benchmark is not None and "benchmark" in spec.model_fields_set,
    }
    for index, goal in enumerate(spec.acceptance):
        asked[f"/acceptance/{index}"] = isinstance(goal, QualityGoal | LatencyGoal)
    detail = f"The family {order.family.model_type} is not known here, so its network cannot be run; leave this out."
    for pointer, is_asked in asked.items():
        if is_asked:
            yield Fault("FAMILY_NOT_RUN", pointer, detail)
