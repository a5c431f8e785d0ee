"""A Hugging Face directory that plain `from_pretrained` loads with nothing of ours."""

from pathlib import Path

from transformers import PreTrainedModel

from workers.engine.exporters.folder import write_folder
from workers.engine.failures import EngineError
from workers.engine.families import is_stock
from workers.engine.modeling_secateur import CLASSES


def export(network: PreTrainedModel, folder: Path, source: Path) -> None:
    """Writes `network` in stock form; raises EngineError where a stock config cannot express its sizes."""
    if not is_stock(network):
        raise EngineError(
            "EXPORT_FAILED",
            "a stock config cannot express this network's sizes per layer; export huggingface_custom or onnx instead",
            blame="user",
        )
    stock = {"architectures": [stock_class(network)], "secateur_structure": None, "auto_map": None}
    write_folder(network, folder, source, stock)


def stock_class(network: PreTrainedModel) -> str:
    """Name of the stock class, also where `network` is an instance of ours."""
    ours = CLASSES.get(network.config.model_type)
    return ours.__mro__[1].__name__ if ours and isinstance(network, ours) else type(network).__name__
