"""A Hugging Face directory that plain `from_pretrained` loads with nothing of ours."""

from pathlib import Path

from transformers import PreTrainedModel

from workers.engine.exporters.folder import write_folder
from workers.engine.failures import EngineError
from workers.engine.families.loading import stock_class
from workers.engine.families.sizes import is_stock
from workers.engine.tasks.task import Task


def export(network: PreTrainedModel, folder: Path, source: Path, task: type[Task]) -> None:
    """Writes `network` in stock form; raises EngineError where a stock config cannot express its sizes."""
    if not is_stock(network):
        raise EngineError(
            "EXPORT_FAILED",
            "a stock config cannot express this network's sizes per layer; export huggingface_custom or onnx instead",
            blame="user",
        )
    stock = {"architectures": [stock_class(network)], "secateur_sizes": None, "auto_map": None}
    write_folder(network, folder, source, stock)
