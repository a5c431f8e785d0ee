"""The memory and the disk that a job needs, in bytes."""

from service.estimate.anatomy import Anatomy, after
from service.estimate.work import runs_network
from service.resolve.order import Order
from service.specs import DATA_CRITERIA, TRAINING_CRITERIA, Sgd

FLOAT = 4
STORED = {"float16": 2, "bfloat16": 2}
"""Bytes of a weight in types that results keep; all others become float32."""

_LIBRARIES = {"cpu": 900e6, "cuda": 0.0}
"""What the engine takes on the device before it has read anything."""
_ONNX_TOOLS = 800e6
_FILES_ALONE = 100e6
_SCORING_BATCH = 32
_CHECKPOINTS = 3
"""The one that is being stored, and the two that are kept meanwhile."""


def stored_bytes(order: Order) -> int:
    """Of one weight as it is saved."""
    return STORED.get(order.model.dtype, FLOAT)


def memory(order: Order, whole: Anatomy | None, device: str) -> float:
    """The most that the job holds on its device: networks, what training adds to them, activations, exports."""
    if not runs_network(order):
        return _FILES_ALONE
    parameters = order.model.parameters
    networks = 2.0 * FLOAT * parameters  # the one that is cut, and a copy of it as it was
    recipes = [recipe for recipe in (order.spec.baseline, order.spec.finetuning) if recipe is not None]
    trained = bool(recipes) or any(cut.kind in TRAINING_CRITERIA for cut in order.spec.pruning.cuts)
    scored = order.spec.pruning.target is not None or any(cut.kind in DATA_CRITERIA for cut in order.spec.pruning.cuts)
    moments = max((1 if isinstance(recipe.optimizer, Sgd) else 2 for recipe in recipes), default=2)
    # Gradients, the optimizer's moments, and the weights of the best epoch.
    training = FLOAT * parameters * (2 + moments if trained else scored)
    exports: float = FLOAT * parameters
    if {"onnx", "onnx_int8"} & set(order.spec.exports):
        exports = _ONNX_TOOLS + 3 * FLOAT * parameters
    if device == "cuda":
        exports = 0.0
    held = _activations(order, whole, kept=trained or scored) if whole is not None else 0.0
    return _LIBRARIES[device] + networks + max(training + held, exports)


def _activations(order: Order, whole: Anatomy, *, kept: bool) -> float:
    """What a forward pass of the largest batch holds: of all layers where they are kept for a backward one."""
    recipes = [recipe for recipe in (order.spec.baseline, order.spec.finetuning) if recipe is not None]
    batch = max((recipe.batch_size for recipe in recipes), default=_SCORING_BATCH)
    if not order.uses_data:
        return 0.0
    length = float(order.max_length or 128)
    layers = sum(8 * whole.hidden * len(s.heads) + 2 * sum(s.neurons) for s in whole.stacks)
    attended = sum(3 * length * sum(s.heads) for s in whole.stacks)
    words = 4 * whole.vocabulary if whole.worded else 0.0
    at_once = 1 if kept else max(1, sum(len(stack.heads) for stack in whole.stacks))
    return FLOAT * batch * length * ((layers + attended) / at_once + words)


def disk(order: Order, whole: Anatomy | None) -> float:
    """Copies of what the job reads, what it makes, and what it measures on the way."""
    parameters = order.model.parameters if whole is None else after(order, whole)[1].parameters
    splits = order.dataset.splits if order.dataset else {}
    read = float(order.model.size + sum(facts["size"] for facts in splits.values()))
    per_weight = {"onnx": FLOAT, "onnx_int8": 1}
    made = sum(parameters * per_weight.get(name, stored_bytes(order)) for name in order.spec.exports)
    measured = sum(order.model.parameters * per_weight[name] for name in order.spec.exports if name in per_weight)
    zeroes = stored_bytes(order) * parameters if order.spec.pruning.zeroes_weights else 0.0
    trains = order.spec.baseline is not None or order.spec.finetuning is not None
    checkpoint = FLOAT * order.model.parameters * 5 if trains else 0.0
    return read + made + measured + 2 * zeroes + _CHECKPOINTS * checkpoint
