"""Exporters: how a pruned network is written for others to load.

Order matters where several are asked for: export in the order of `EXPORTERS`, so that `onnx_int8` finds the fp32
ONNX file in the same folder instead of making its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedModel

from workers.engine.exporters import huggingface, huggingface_custom, onnx, onnx_int8
from workers.engine.tasks.task import Task

Export: TypeAlias = Callable[[PreTrainedModel, Path, Path, type[Task]], None]
"""`export(network, folder, source, task)`: writes `network` into `folder`, which is made where missing.

The network is not changed, whatever its device and dtype. `source` is the folder of the uploaded model: tokenizer and
other inert files are copied from it. `task` is what the network is for. Raises EngineError with the code EXPORT_FAILED.
"""


@dataclass(frozen=True)
class Exporter:
    """One form of export. `folder` is where it goes below `out/`, `file` what to load there, `loader` who loads it."""

    folder: str
    file: str
    loader: str
    export: Export


EXPORTERS: dict[str, Exporter] = {
    "huggingface": Exporter("huggingface", "", "stock", huggingface.export),
    "huggingface_custom": Exporter("huggingface_custom", "", "custom", huggingface_custom.export),
    "onnx": Exporter("onnx", onnx.FILE, "onnx", onnx.export),
    "onnx_int8": Exporter("onnx", onnx_int8.FILE, "onnx", onnx_int8.export),
}
