"""Weights near zero, counted in the files: memory stays the same whatever the model's size, and any family will do.

A matrix's own root mean square is the measure, so that layers of small weights do not all look redundant.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from service.specs.findings import Near, NearZero
from workers.engine.rounding import brief
from workers.engine.streamed import is_projection
from workers.engine.streaming import Meter
from workers.engine.streaming.shards import Tensor, as_float64, magnitudes, parts, read_shards

STACKS = ("encoder", "decoder")
SHOWN_MATRICES = 200
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")

Counted: TypeAlias = tuple[int, int, int]
"""Weights, those near zero, and those that are zero."""


def near_zero(folder: Path, threshold: float, progress: Callable[[float], None]) -> tuple[NearZero, list[Near]]:
    """Counts in the projections of all layers; also returns every matrix, in the order of files and bytes.

    A weight is near zero where it is at most `threshold` of its matrix's root mean square. Raises EngineError
    NOT_FINITE, and MODEL_UNUSABLE for a file that is cut off.
    """
    tensors = [tensor for shard in read_shards(folder) for tensor in shard.tensors if tensor.is_matrix]
    tensors = [tensor for tensor in tensors if is_projection(tensor.name)]
    meter = Meter(2 * sum(tensor.end - tensor.start for tensor in tensors), progress)
    counted = [(tensor, _count(tensor, threshold, meter.advance)) for tensor in tensors]
    both = all(any(stack in tensor.name.split(".") for tensor in tensors) for stack in STACKS)
    layers: dict[tuple[str, int], list[Counted]] = defaultdict(list)
    matrices = []
    for tensor, counts in counted:
        stack = next((stack for stack in STACKS if both and stack in tensor.name.split(".")), "")
        layer = int(_LAYER.findall(tensor.name)[0])
        layers[stack, layer].append(counts)
        matrices.append(_near(stack, layer, tensor.name, [counts]))
    whole = _near("", 0, None, [counts for _, counts in counted])
    summary = NearZero(
        threshold=threshold,
        weights=whole.weights,
        share=whole.share,
        zeros=whole.zeros,
        layers=[_near(stack, layer, None, layers[stack, layer]) for stack, layer in sorted(layers, key=_by_stack)],
        matrices=sorted(matrices, key=lambda near: -near.share)[:SHOWN_MATRICES],
    )
    return summary, matrices


def _by_stack(place: tuple[str, int]) -> tuple[bool, int]:
    return place[0] == "decoder", place[1]


def _count(tensor: Tensor, threshold: float, advance: Callable[[int], None]) -> Counted:
    squares, near, zeros = 0.0, 0, 0
    for _, bits in parts(tensor, (1, 1)):
        squares += float(np.square(as_float64(magnitudes(bits, tensor.dtype), tensor.dtype)).sum())
        advance(bits.nbytes)
    level = threshold * math.sqrt(squares / tensor.size)
    for _, bits in parts(tensor, (1, 1)):
        sizes = as_float64(magnitudes(bits, tensor.dtype), tensor.dtype)
        near += int(np.count_nonzero(sizes <= level))
        zeros += int(np.count_nonzero(sizes == 0))
        advance(bits.nbytes)
    return tensor.size, near, zeros


def _near(stack: str, layer: int, matrix: str | None, counts: Sequence[Counted]) -> Near:
    weights, near, zeros = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return Near(
        stack=stack,
        layer=layer,
        matrix=matrix,
        weights=weights,
        share=brief(near / max(1, weights)),
        zeros=brief(zeros / max(1, weights)),
    )
