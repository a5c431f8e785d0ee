"""ONNX in fp32 with free batch size and sequence length."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.replica import replica
from workers.engine.tasks.task import Task

FILE = "model.onnx"
PROTOBUF_LIMIT = 2_000_000_000
"""A single ONNX file cannot hold 2 GiB; larger weights go to a file beside it."""


class Outputs(nn.Module):
    """A network that gives back only the outputs that count."""

    def __init__(self, network: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The outputs, in the order of their names."""
        optional = {"token_type_ids": token_type_ids, "decoder_input_ids": decoder_input_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, **given)
        return tuple(found[name] for name in self.names)


def export(network: PreTrainedModel, folder: Path, source: Path, task: type[Task]) -> None:
    """Writes `folder/model.onnx`: int64 `input_ids`, `attention_mask` of (batch, sequence), and what else the network
    takes (`token_type_ids`, `decoder_input_ids`), to the float32 outputs of the task. `source` is not read.

    A decoder runs over all of its tokens at once, without a cache of earlier ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Eager attention gives fewer nodes than the decomposed sdpa with its guards, and runs a few percent faster.
    network = replica(network, dtype=torch.float32)
    network.set_attn_implementation("eager")
    inputs = family_of(network).example(network)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        _convert(Outputs(network, task.outputs), folder / FILE, inputs, list(task.outputs))
    strip(folder / FILE)
    onnx.checker.check_model(str(folder / FILE))


def _shapes(inputs: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    batch, sequence, target = (torch.export.Dim(name) for name in ("batch", "sequence", "target_sequence"))
    return {name: {0: batch, 1: target if name.startswith("decoder") else sequence} for name in inputs}


def _convert(network: nn.Module, path: Path, inputs: dict[str, Tensor], outputs: list[str]) -> None:
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
            output_names=outputs,
            dynamic_shapes=_shapes(inputs),
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
