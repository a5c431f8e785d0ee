"""ONNX with dynamic int8 quantization: weights and embeddings in int8, activations quantized as they come."""

import logging
import tempfile
import warnings
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import PreTrainedModel

from workers.engine.exporters import onnx
from workers.engine.tasks.task import Task

FILE = "model_int8.onnx"
OPERATORS = ["MatMul", "Gemm", "Gather"]
"""Gather is the embedding look-up: left out, fp32 embeddings would be most of the file."""


def export(network: PreTrainedModel, folder: Path, source: Path, task: type[Task]) -> None:
    """Writes `folder/model_int8.onnx` from `folder/model.onnx`, or from an fp32 file of its own where that is missing.

    Scales are per output channel (measured on a 6-layer MiniLM: a third of the error of one scale per matrix, at the
    same speed) and weights signed (unsigned ones ran 1.4 times slower).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        dense = folder / onnx.FILE
        if not dense.exists():
            onnx.export(network, Path(scratch), source, task)
            dense = Path(scratch) / onnx.FILE
        quantize(dense, folder / FILE)


def quantize(dense: Path, target: Path) -> None:
    """Quantizes the fp32 ONNX file `dense` into `target`."""
    logger, level = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(
                dense,
                target,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=dense.with_name(dense.name + ".data").exists(),
            )
    finally:
        logger.setLevel(level)
