"""What a job has to do: FLOPs and fixed times, phase by phase, as seconds on a machine of a stated speed."""

from collections import defaultdict
from dataclasses import dataclass

from service.estimate.anatomy import Anatomy, after
from service.resolve.order import Order
from service.specs import TRAINING_CRITERIA, Cut, Gradual, Training
from service.specs.criteria import Magnitude

SPEEDS = {"cpu": 30e9, "cuda": 5e12}
"""FLOPs per second that are assumed of each kind of device until jobs have shown more."""

TRAINING_COST = 3
"""A step costs in forward passes: one forward, and a backward of twice its work."""

_BYTES_PER_TOKEN = {"token-classification": 15.0, "translation": 8.0}
"""Of a row of JSON: words and tags in quotes; two texts of which each side reads one. Elsewhere plain text:"""
_PLAIN_BYTES_PER_TOKEN = 4.0
_ROW_FRAME = 30.0
"""Bytes of a row of JSON around its text."""
_BYTES_PER_SECOND = 300e6
_BENCHMARK_SECONDS = 60.0
_MAX_REPETITIONS, _MIN_REPETITIONS = 400, 10
_STARTING = {True: 9.0, False: 0.7}
_FRESH_PROCESS = 7.0
_ONNX_SECONDS = 12.0
_ONNX = ("onnx", "onnx_int8")
_FORWARD_ONLY = frozenset({"activation", "similarity"})
_REPAIR_ROWS = 512
"""Rows that a repair reads after a criterion that reads none."""

Phases = dict[str, float]


@dataclass(frozen=True)
class Reading:
    """Tokens that one pass over each split reads, and how many rows they are."""

    rows: dict[str, int]
    tokens_per_row: dict[str, float]

    def tokens(self, split: str, at_most: int | None = None) -> float:
        """Of a split, or of so many of its rows."""
        rows = self.rows.get(split, 0)
        return self.tokens_per_row.get(split, 0.0) * (rows if at_most is None else min(rows, at_most))


def reading(order: Order) -> Reading:
    """From the sizes of the splits: rows are cut at `max_length`; language models read full blocks of it."""
    longest = float(order.max_length or 128)
    rows, tokens = {}, {}
    per_token = _BYTES_PER_TOKEN.get(order.spec.task, _PLAIN_BYTES_PER_TOKEN)
    for split, facts in (order.dataset.splits if order.dataset else {}).items():
        rows[split] = max(1, facts["rows"])
        whole = max(2.0, (facts["size"] / rows[split] - _ROW_FRAME) / per_token)
        windowed = order.spec.task in ("causal-lm", "masked-lm", "question-answering")
        tokens[split] = whole if windowed else min(longest, whole)
    return Reading(rows, tokens)


def runs_network(order: Order) -> bool:
    """Whether the network is built: jobs on single weights by their norm work on the files alone."""
    by_norm = all(c.structure == "weights" and isinstance(c.criterion, Magnitude) for c in order.spec.pruning.cuts)
    return order.uses_data or order.benchmark is not None or not order.spec.pruning.cuts or not by_norm


def phases(order: Order, whole: Anatomy | None, device: str) -> Phases:
    """Seconds of each phase at `SPEEDS`; `starting` is what comes before the first."""
    seconds: Phases = defaultdict(float)
    size = 4.0 * order.model.parameters
    network = runs_network(order)
    seconds["starting"] = _STARTING[network]
    seconds["loading"] = (1.0 if network else 0.0) + size / _BYTES_PER_SECOND
    for phase, flops in (_flops(order, whole) if whole else {}).items():
        seconds[phase] += flops / SPEEDS[device]
    seconds["pruning"] += (0.2 if network else 0.0) + size / _BYTES_PER_SECOND
    onnx = sum(name in _ONNX for name in order.spec.exports)
    seconds["exporting"] += (0.3 if network else 0.0) + size / _BYTES_PER_SECOND + onnx * (_ONNX_SECONDS + size / 50e6)
    seconds["verifying"] += _FRESH_PROCESS + 3.0 * onnx if network else size / _BYTES_PER_SECOND
    if order.benchmark is not None and whole is not None:
        seconds["evaluating"] += _benchmark(order, whole, device, onnx)
    return dict(seconds)


def _flops(order: Order, whole: Anatomy) -> Phases:
    """Of everything that runs rows through a network."""
    spec, rows = order.spec, reading(order)
    found: Phases = defaultdict(float)
    pruned = after(order, whole)[1]
    length = float(order.max_length or 128)
    before, left = (side.flops(length) / length for side in (whole, pruned))
    validation = rows.tokens("validation") or 0.1 * rows.tokens("train")
    rounds = spec.pruning.schedule.rounds if isinstance(spec.pruning.schedule, Gradual) else 1

    def trained(recipe: Training | int, per_token: float, teacher: float = 0.0) -> float:
        epochs = recipe if isinstance(recipe, int) else recipe.epochs
        epoch = (TRAINING_COST * per_token + teacher) * rows.tokens("train") + per_token * validation
        return epochs * epoch + per_token * validation

    if spec.baseline is not None:
        found["finetuning"] += trained(spec.baseline, before)
    if spec.finetuning is not None:
        teacher = before if spec.finetuning.distillation is not None else 0.0
        found["finetuning"] += trained(spec.finetuning, left if rounds == 1 else (before + left) / 2, teacher)
    for cut in spec.pruning.cuts:
        if cut.kind in TRAINING_CRITERIA:
            found["finetuning"] += rounds * trained(getattr(cut.criterion, "epochs", 1), before)
        found["pruning"] += rounds * _scoring(order, whole, cut, rows, before)
    if spec.pruning.target is not None:
        tokens = _sampled(rows, spec.pruning.target.samples)
        solving = _solving(whole, tokens) + _repairing(whole, tokens)
        found["pruning"] += rounds * ((TRAINING_COST + 1) * before * tokens + solving)
    judged = rows.tokens("test") or validation
    steps = 2.0 * spec.beams if spec.task == "translation" else 1.0
    found["evaluating"] += steps * judged * (before + left)
    return found


def _scoring(order: Order, whole: Anatomy, cut: Cut, rows: Reading, per_token: float) -> float:
    """Reading rows for a criterion, with gradients where it needs them, and for the repair of what remains."""
    samples = getattr(cut.criterion, "samples", 0)
    tokens = _sampled(rows, samples)
    flops = (1 if cut.kind in _FORWARD_ONLY else TRAINING_COST) * per_token * tokens
    if cut.kind == "second_order":
        flops += _solving(whole, tokens)
    if cut.structure in ("attention_heads", "ffn_neurons") and order.can_score and cut.repair is not False:
        read = _sampled(rows, samples or _REPAIR_ROWS)
        flops += per_token * read + _repairing(whole, read)
    return flops


def _repairing(whole: Anatomy, tokens: float) -> float:
    """Second moments of what the projections are fed with, and the systems that are solved with them."""
    widths = [width for stack in whole.stacks for width in stack.neurons]
    widths += [heads * stack.head_width for stack in whole.stacks for heads in stack.heads]
    return sum(2 * tokens * width**2 + width**3 for width in widths)


def _solving(whole: Anatomy, tokens: float) -> float:
    """The same where units are taken out one by one, each with an update of the rest."""
    return _repairing(whole, tokens) + 10 * sum(width**3 for stack in whole.stacks for width in stack.neurons)


def _sampled(rows: Reading, samples: int) -> float:
    return rows.tokens("train" if "train" in rows.rows else "calibration", samples)


def _benchmark(order: Order, whole: Anatomy, device: str, onnx: int) -> float:
    """Latencies of both sides in turn, within a budget of time; the memory of each in a process of its own."""
    shape = order.benchmark or {}
    speed = SPEEDS[device] if device == "cuda" else SPEEDS["cpu"] / 2
    share = _BENCHMARK_SECONDS / (len(shape["batch_sizes"]) * (1 + onnx))
    seconds = 0.0 if device == "cuda" else 2 * _FRESH_PROCESS
    for batch in shape["batch_sizes"]:
        pair = 2 * batch * whole.flops(shape["sequence_length"]) / speed + 1e-3
        seconds += (1 + onnx) * max(_MIN_REPETITIONS * pair, min(_MAX_REPETITIONS * pair, share))
    return seconds + onnx * (_ONNX_SECONDS + 4.0 * order.model.parameters / 50e6)
