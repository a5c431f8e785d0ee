"""ONNX in fp32 with free batch size and sequence length."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import uses_external_data
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.replica import replica

FILE = "model.onnx"
PROTOBUF_LIMIT = 2_000_000_000
"""A single ONNX file cannot hold 2 GiB; larger weights go to a file beside it."""


def export(network: PreTrainedModel, folder: Path, source: Path) -> None:
    """Writes `folder/model.onnx`: int64 `input_ids`, `attention_mask` (and `token_type_ids`) of (batch, sequence) to
    float32 `logits` of (batch, labels). `source` is not read."""
    folder.mkdir(parents=True, exist_ok=True)
    # Eager attention gives fewer nodes than the decomposed sdpa with its guards, and runs a few percent faster.
    network = replica(network, dtype=torch.float32)
    network.set_attn_implementation("eager")
    inputs = family_of(network).example(network)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        _convert(network, folder / FILE, inputs, {name: {0: batch, 1: sequence} for name in inputs})
    strip(folder / FILE)
    onnx.checker.check_model(str(folder / FILE))


def _convert(network: PreTrainedModel, path: Path, inputs: dict[str, torch.Tensor], shapes: dict[str, Any]) -> None:
    size = sum(parameter.numel() * 4 for parameter in network.parameters())
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            network,
            (),
            path,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=size > PROTOBUF_LIMIT,
            verbose=False,
        )
    finally:
        registration.setLevel(level)


def strip(path: Path) -> None:
    """Removes the exporter's notes from the graph: they hold source lines and paths of this machine."""
    graph_file = onnx.load(str(path), load_external_data=False)
    graph = graph_file.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.name = "network"
    if any(uses_external_data(tensor) for tensor in graph.initializer):
        path.write_bytes(graph_file.SerializeToString())
    else:
        onnx.save_model(graph_file, str(path))
